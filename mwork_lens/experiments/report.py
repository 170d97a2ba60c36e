"""One model on one corpus, piece by piece in a folder that resumes; a notebook shows a report, the demo one page."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from .. import plots
from ..detection import Detection, detect, matched_control, neuron_counts, overlap, random_control
from ..effects import EffectMatrix, StageGrid, Workflow, effect_matrix, workflow
from ..effects.overlap import seen_finding
from ..generation import Generations, generations
from ..lens import LanguageRatio, NeuronCards, TokenLanguages, inspect, label_vocabulary, language_ratio
from ..model import HookedModel, encode, model_record, special_ids
from ..neurons import STAGES, NeuronSet
from ..report import Section, write_page
from ..settings import ReportConfig
from ..statistics import FALSE_DISCOVERIES, adjusted_verdict, counted, not_measurable
from ..store import versions, write_text
from ..text import Corpus, Identifier, identifier
from ..text.choices import listed, named
from .effects import effects_settings, held_out_text, require_languages, run_effects, stages_of
from .folder import ResultsFolder, load_or_run, piece_name
from .sets import most_specific, specific_sets

logger = logging.getLogger("mwork_lens")

EVERY = 10
"""The language ratio reads every tenth token, from the end."""
OPENING = 12
"""Tokens of a held-out passage that a completion goes on from."""
OWN, MATCHED = "own neurons off", "as many with equal scores off"
LIMITS = [
    "Rise of next-token loss on held-out passages, in nats per token; the intervals in the figure's hover are 95 % by "
    "jackknife over documents. A ratio is left out where the others' rise is not clearly above zero. Rows are sets of "
    "different size: compare along a row, or a set with the controls of its size.",
    "This shows which neurons one language's text needs more than another's, on this model and this text. It does not "
    "show what the neurons compute, nor that a task fails; on a corpus that is not parallel it would mix topic with "
    "language.",
]
RATIO = (
    "Hidden states after each layer, decoded through the unembedding: the language of the ten most likely tokens at "
    "every tenth position. Dotted: what random directions of that layer decode to. Only the distance from its dotted "
    "line says anything about the model."
)


@dataclass(frozen=True)
class Measurement:
    """Neurons detected on some documents of a corpus, and the documents to measure all else on; pieces are kept."""

    model: HookedModel
    config: ReportConfig
    """With languages for controls and stages."""
    folder: ResultsFolder
    detection: Detection
    sets: Mapping[str, NeuronSet]
    """Each language's specific neurons, where it has any."""
    held_out: Corpus
    progress: bool

    @classmethod
    def begin(
        cls,
        name: str,
        model: HookedModel,
        corpus: Corpus,
        path: Path,
        config: ReportConfig,
        *,
        detection: Detection | None = None,
        progress: bool = True,
    ) -> "Measurement":
        """Detect neurons, unless ``path`` or the caller has the detection; ValueError if no language has specific ones.

        With a detection, all that it has not read is held out.
        """
        if detection and (lacking := [language for language in detection.languages if language not in corpus]):
            raise ValueError(
                f"There is a detection of {lacking[0]!r} but no text; there is {listed(corpus, lacking[0])}."
            )
        if len(corpus) < 2:
            raise ValueError(f"One language ({', '.join(corpus)}) has nothing to be compared with: give at least two.")
        if config.stages or model.cfg.n_layers >= len(STAGES):
            stages_of(model, config)
        saved = {} if detection is None else {"detection": {"space": asdict(detection.space), **detection.settings}}
        effects = effects_settings(config)
        rest = {key: value for key, value in asdict(config).items() if key not in (*effects, "overlap")}
        record = {**model_record(model), "effects": effects, **rest, "corpus": corpus.describe(), **saved}
        folder = ResultsFolder.open(path, name, record)
        if detection is None:
            train, held_out = corpus.split(config.held_out, seed=config.seed)
            options = {"top": config.top, "max_tokens": config.max_tokens, "progress": progress}
            detection = load_or_run(folder.path / "detection", Detection, detect, model, train, **options)
        else:
            held_out, given = held_out_text(corpus, detection), detection
            detection = load_or_run(folder.path / "detection", Detection, lambda: given)
        sets = specific_sets(detection, config.quorum)
        if not sets:
            rule = f"top={detection.settings.get('top')}, quorum={config.quorum}"
            raise ValueError(f"No language has specific neurons at {rule}: lower the quorum.")
        # English is the pivot that the others are compared with: show the controls of another language if there is one
        others = [language for language in sets if language != "en"] or list(sets)
        stages = config.stages or (others if model.cfg.n_layers >= len(STAGES) else ())
        config = replace(config, controls=config.controls or others[:1], stages=stages)
        return cls(model, config, folder, detection, sets, held_out, progress)

    @cached_property
    def prompts(self) -> Corpus:
        """A few held-out passages of each language."""
        return self.held_out.limit(self.config.prompts)

    @property
    def reading(self) -> dict[str, Any]:
        """Options of every function that reads texts."""
        return {"max_tokens": self.config.max_tokens, "progress": self.progress}

    def piece(self, name: str, *arguments: Any, **options: Any) -> Any:
        """A result of the folder, measured if it is not there."""
        path = self.folder.path / name
        if not path.exists():
            logger.info("Measuring: %s", name.replace("-", " "))
        self.folder.written.append(path)
        return load_or_run(path, *arguments, **options)

    @cached_property
    def identifier(self) -> tuple[str | Identifier, str]:
        """The identifier and "", or one that identifies no language and why."""
        try:
            self.labels(self.config.identifier)
        except (ValueError, ImportError) as error:
            logger.warning("Without the languages of tokens and texts: %s", error)
            return _no_identifier, str(error)
        return self.config.identifier, ""

    def labels(self, identifier: str | Identifier) -> TokenLanguages:
        """The language of every token."""
        return label_vocabulary(self.model, list(dict.fromkeys(["en", *self.held_out])), identifier=identifier)

    def ratio(self, name: str) -> LanguageRatio | None:
        """Which language each layer speaks; None where no identifier has the languages."""
        identifier, reason = self.identifier
        if reason:
            return None
        options = {"positions": slice(None, None, -EVERY), "token_languages": self.labels(identifier), **self.reading}
        return self.piece(name, LanguageRatio, language_ratio, self.model, self.prompts, **options)


def _no_identifier(texts: Sequence[str]) -> list[str | None]:
    return [None] * len(texts)


def measure(
    model: HookedModel,
    corpus: Corpus,
    path: Path,
    config: ReportConfig,
    *,
    detection: Detection | None = None,
    progress: bool = True,
) -> ResultsFolder:
    """Run what is not at ``path`` yet: detection, sets, language ratio, effects, stages, cards, completions.

    Neurons are detected on one part of the documents (or were before), all else is measured on the rest. What cannot be
    measured (e.g. languages that the identifier does not have) is left out, and ``missing.json`` says why. A ValueError
    names what does not go together, before the model is run where that can be seen.
    """
    if model.tokenizer is None:
        raise ValueError(f"{model.cfg.model_name} has no tokenizer, which a report needs to show texts.")
    require_languages(config, corpus, detection)
    with contextlib.suppress(ImportError):
        identifier(config.identifier, ["en", "ru"])
    run = Measurement.begin("report", model, corpus, path, config, detection=detection, progress=progress)
    detection, quorum, layers = run.detection, run.config.quorum, model.cfg.n_layers
    for language, neurons in run.sets.items():
        run.piece(f"neurons/{piece_name(language)}", NeuronSet, lambda neurons=neurons: neurons)
    tables = {f"counts-{kind}": neuron_counts(detection, kind=kind, quorum=quorum) for kind in ("specific", "active")}
    run.folder.write({**tables, "overlap": overlap(detection, quorum=quorum)})
    (identify, no_identifier), ratio = run.identifier, run.ratio("language-ratio")
    _measure_effects(run, ratio)
    options = {"token_languages": run.labels(identify), **run.reading}
    for language, neurons in run.sets.items():
        shown = most_specific(detection, neurons, language, run.config.cards)
        run.piece(f"cards/{piece_name(language)}", NeuronCards, inspect, model, shown, run.held_out, **options)
    parts = [_completions(run, language, neurons) for language, neurons in run.sets.items()]
    rows = tuple(row for part in parts for row in part.rows)
    run.piece("generations", Generations, lambda: Generations(rows, parts[0].settings))
    missing = {"language-ratio": no_identifier} if no_identifier else {}
    if layers < len(STAGES):
        missing["stage-grid"] = f"{layers} layers are too few for three stages."
    run.folder.document("missing", missing)
    return run.folder


def _measure_effects(run: Measurement, ratio: LanguageRatio | None) -> None:
    logger.info("Measuring: effects, row by row")
    place, options = run.folder.path / "study", {"detection": run.detection, "progress": run.progress}
    effects, grid, _ = run_effects(run.model, run.held_out, place, run.config, **options)
    run.piece("effects", EffectMatrix, lambda: effects)
    run.folder.write({"effects": effects.to_frame(), "selectivity": effects.selectivity()})
    if grid:
        run.piece("stage-grid", StageGrid, lambda: grid)
        run.folder.write({"stages": grid.to_frame()})
        run.piece("workflow", Workflow, workflow, grid, ratio)


def _completions(run: Measurement, language: str, neurons: NeuronSet) -> Generations:
    off = {OWN: neurons, MATCHED: matched_control(neurons, run.detection, seed=run.config.seed)}
    prompts = {language: list(_prompt_prefixes(run.model, run.prompts[language]))}
    options = {"identify": run.identifier[0], "languages": list(run.held_out)}
    options |= {"max_new_tokens": run.config.new_tokens, "progress": run.progress}
    return run.piece(
        f"completions/{piece_name(language)}", Generations, generations, run.model, off, prompts, **options
    )


def _prompt_prefixes(model: HookedModel, passages: Sequence[Any]) -> Iterator[str]:
    """The first words of passages, as many tokens of each."""
    special = set(special_ids(model).tolist())
    for ids in encode(model, passages, list(map(str, range(len(passages)))), None):
        ordinary = [i for i in ids.tolist() if i not in special][:OPENING]
        yield model.tokenizer.decode(ordinary).rstrip("\ufffd")


@dataclass(frozen=True)
class Demo:
    """What one run of the demo measured."""

    run: Measurement
    sets: Mapping[str, NeuronSet]
    """Each language's specific neurons, then a score-matched and a uniformly random control for one language."""
    effects: EffectMatrix
    ratio: LanguageRatio | None
    """Which language each layer speaks, on a few held-out passages; None where no identifier has the languages."""

    def table(self) -> pd.DataFrame:
        """The effect matrix with the size of each set and how selective it is."""
        selectivity = self.effects.selectivity()
        more = {"own − others": selectivity["difference"], "own : others": selectivity["ratio"]}
        return self.effects.to_frame().assign(**more, neurons=[len(self.sets[row]) for row in self.effects.rows])

    def findings(self) -> list[str]:
        """Sentences on what the run shows, from its own numbers; the last is on the random control."""
        return [*findings(self.effects), self.effects.finding(list(self.sets)[-1])]

    def write(self) -> list[Path]:
        """Write the table and the page; returns what the folder holds."""
        detection, effects, path = self.run.detection, self.effects, self.run.folder.path
        write_text(path / "effects.csv", self.table().to_csv())
        counts = plots.neuron_counts(neuron_counts(detection, quorum=self.run.config.quorum))
        selectivity = effects.selectivity().drop(columns="language").round(3)
        settings = {"detection": detection.settings, "effects": effects.settings, "versions": versions()}
        sections = [
            Section("What switching neurons off does", self.findings(), plots.effect_matrix(effects)),
            Section("The numbers", ["Off (rows) by read (columns), nats per token."], self.table().round(3)),
            Section("Selectivity, with intervals", (), selectivity),
            Section("Where the neurons are", (), counts),
            Section("How to read this", LIMITS),
            Section("Settings", (), settings),
        ]
        if self.ratio:
            spoken = [RATIO, *ratio_finding(self.ratio)]
            sections.insert(0, Section("Which language each layer speaks", spoken, plots.language_ratio(self.ratio)))
        page = write_page(path / "report.html", f"Language neurons of {detection.space.model}", sections)
        return [page, *(path / name for name in ("effects.csv", "effects", "detection", "neurons"))]


def run_demo(model: HookedModel, corpus: Corpus, path: Path, config: ReportConfig | None = None) -> Demo:
    """Detect on one part of the corpus (by default four fifths), switch off and measure on the held-out part.

    Refuses what :meth:`Measurement.begin` and :meth:`ResultsFolder.open` refuse.
    """
    run = Measurement.begin("demo", model, corpus, path, config or ReportConfig(held_out=0.2))
    language, detection = run.config.controls[0], run.detection
    sets = {each: detection.specific(each, quorum=run.config.quorum) for each in detection.languages}
    sets[f"matched {language}"] = matched_control(sets[language], detection, seed=run.config.seed)
    sets[f"random {language}"] = random_control(sets[language], seed=run.config.seed)
    for name, neurons in sets.items():
        run.piece(f"neurons/{piece_name(name.replace(' ', '-'))}", NeuronSet, lambda neurons=neurons: neurons)
    ratio = run.ratio("ratio")
    effects = run.piece("effects", EffectMatrix, effect_matrix, model, sets, run.held_out, **run.reading)
    return Demo(run, sets, effects, ratio)


def findings(effects: EffectMatrix, ratio: LanguageRatio | None = None) -> list[str]:
    """Sentences on what a run shows, from its own numbers: selectivity, its control, and what the layers speak."""
    selectivity, frame = effects.selectivity(), effects.to_frame()
    own = [row for row in selectivity.index if row in frame.columns and selectivity.loc[row, "neurons"]]
    most = [row for row in own if frame.loc[row].idxmax() == row]
    sides = {row: adjusted_verdict(*selectivity.loc[row, ["difference", "p_adjusted"]]) for row in own}
    documents = effects.document_count()
    read = [len(names) for names in effects.documents.values()]
    shown = not_measurable(documents, passages=min(read))
    if "not measurable" not in sides.values():
        clear = [row for row, side in sides.items() if side == "above"]
        shown = f"clear for {len(clear)} ({_named(clear)}) at q ≤ {FALSE_DISCOVERIES:g} on {counted(read, [documents])}"
    ends = dict.fromkeys(f"{end(selectivity.loc[own, 'neurons']):,.0f}" for end in (min, max))
    off = f"Switching off a language's own neurons ({' to '.join(ends)} neurons)"
    text = [
        f"{off} raises that language's loss the most for {len(most)} of {len(own)} languages "
        f"({_named(most)}). That the rise is above the mean rise of the others is {shown}."
    ]
    if "not measurable" in sides.values():
        text = [f"{off}: whose loss rises the most, and by how much more than the others', is {shown}."]
    origins = {row: draws[0]["origin"] for row, draws in effects.settings["sets"].items()}
    matched = [row for row, origin in origins.items() if origin.get("kind") == "matched"][:1]
    text += [seen_finding(effects.documents_read)]
    text += [effects.finding(name) for row in matched for name in (str(effects.languages[row]), row)]
    return [*text, *ratio_finding(ratio)]


def _named(rows: Sequence[str]) -> str:
    return named(rows, "rows, in the table") or "none"


def ratio_finding(ratio: LanguageRatio | None) -> list[str]:
    """What the layers speak, where that can be said."""
    return [ratio.finding("en")] if ratio and "en" in ratio.languages and set(ratio.counts) - {"en"} else []
