"""One model on one corpus, piece by piece in a folder that resumes; a notebook, or the demo's page, shows it."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..detection import Detection, detect, matched_control, neuron_counts, overlap
from ..effects import EffectMatrix, StageGrid, Workflow, workflow
from ..generation import Generations, generations
from ..lens import LanguageRatio, NeuronCards, TokenLanguages, inspect, label_vocabulary, language_ratio
from ..model import HookedModel, encode, special_ids
from ..neurons import STAGES, NeuronSet
from ..statistics import verdict
from ..text import Corpus, Identifier, identifier
from .effects import run_effects, specific_sets
from .folder import ResultsFolder, load_or_run
from .settings import ReportConfig

logger = logging.getLogger("mwork_lens")

EVERY = 10
"""The language ratio reads every tenth token, from the end."""
OPENING = 12
"""Tokens of a held-out passage that a completion goes on from."""
OWN, MATCHED = "own neurons off", "as many with equal scores off"


@dataclass(frozen=True)
class Measurement:
    """Neurons detected on some documents of a corpus, and the documents to measure all else on; pieces are kept."""

    model: HookedModel
    config: ReportConfig
    """With languages for controls and stages."""
    folder: ResultsFolder
    detection: Detection
    held_out: Corpus
    progress: bool

    @classmethod
    def begin(
        cls, name: str, model: HookedModel, corpus: Corpus, path: Path, config: ReportConfig, *, progress: bool = True
    ):
        """Detect neurons, unless the folder has the detection.

        Raises:
            FileExistsError: for a directory with other things in it.
            ValueError: for a single language, a run with other settings, or if no language has specific neurons.
        """
        if len(corpus) < 2:
            raise ValueError(f"One language ({', '.join(corpus)}) has nothing to be compared with: give at least two.")
        train, held_out = corpus.split(config.held_out, seed=config.seed)
        effects, settings = config.of_effects(), asdict(config)
        rest = {key: settings[key] for key in settings if key not in effects}
        record = {"model": str(model.cfg.model_name), "effects": effects, **rest, "corpus": corpus.describe()}
        folder = ResultsFolder.open(path, name, record)
        options = {"top": config.top, "max_tokens": config.max_tokens, "progress": progress}
        detection = load_or_run(path / "detection", Detection, detect, model, train, **options)
        sets = specific_sets(detection, config.quorum)
        if not sets:
            rule = f"top={config.top}, quorum={config.quorum}"
            raise ValueError(f"No language has specific neurons at {rule}: lower the quorum.")
        # English is the pivot that the others are compared with: show the controls of another language if there is one
        others = [language for language in sets if language != "en"] or list(sets)
        stages = config.stages or (others if model.cfg.n_layers >= len(STAGES) else ())
        config = replace(config, controls=config.controls or others[:1], stages=stages)
        return cls(model, config, folder, detection, held_out, progress)

    @cached_property
    def sets(self) -> dict[str, NeuronSet]:
        """Each language's specific neurons, where it has any."""
        return specific_sets(self.detection, self.config.quorum)

    @cached_property
    def prompts(self) -> Corpus:
        """A few held-out passages of each language."""
        return self.held_out.limit(self.config.prompts)

    def piece(self, name: str, *arguments: Any, **options: Any) -> Any:
        """A result of the folder, measured if it is not there."""
        if not (self.folder.path / name).exists():
            logger.info("Measuring: %s", name.replace("-", " "))
        self.folder.written.append(self.folder.path / name)
        return load_or_run(self.folder.path / name, *arguments, **options)

    @cached_property
    def identifier(self) -> tuple[str | Identifier, str]:
        """The identifier and "", or one that identifies no language and why."""
        try:
            identifier(self.config.identifier, self._languages)
            self.labels(self.config.identifier)  # the vocabulary is identified over more languages
        except (ValueError, ImportError) as error:
            logger.warning("Without the languages of tokens and texts: %s", error)
            return _no_identifier, str(error)
        return self.config.identifier, ""

    @property
    def _languages(self) -> list[str]:
        return list(dict.fromkeys(["en", *self.held_out]))

    def labels(self, identifier: str | Identifier) -> TokenLanguages:
        """The language of every token."""
        return label_vocabulary(self.model, self._languages, identifier=identifier)

    def ratio(self, name: str) -> LanguageRatio | None:
        """Which language each layer speaks; None where no identifier has the languages."""
        identifier, reason = self.identifier
        if reason:
            return None
        options = {"positions": slice(None, None, -EVERY), "max_tokens": self.config.max_tokens}
        options |= {"token_languages": self.labels(identifier), "progress": self.progress}
        return self.piece(name, LanguageRatio, language_ratio, self.model, self.prompts, **options)


def measure(
    model: HookedModel, corpus: Corpus, path: Path, config: ReportConfig, *, progress: bool = True
) -> ResultsFolder:
    """Run what is not at ``path`` yet: detection, sets, language ratio, effects, stages, cards, completions.

    Neurons are detected on one part of the documents, all else is measured on the rest. What cannot be measured (e.g.
    languages that the identifier does not have) is left out, and ``missing.json`` says why.

    Args:
        model: a hooked model with a tokenizer; it is as before afterwards.
        corpus: text of at least two languages.
        path: a directory for the pieces, new or of a run with the same settings.
        config: what to do.
        progress: whether to show bars.

    Raises:
        FileExistsError: for a directory with other things in it.
        ValueError: for a single language, a model without a tokenizer, languages or an identifier that are not there,
            a run with other settings, or if no language has specific neurons.
    """
    _require(model, corpus, config)
    run = _Report.begin("report", model, corpus, path, config, progress=progress)
    run.run_all()
    return run.folder


def _require(model: HookedModel, corpus: Corpus, config: ReportConfig) -> None:
    """Refuse what would fail after the expensive work."""
    if model.tokenizer is None:
        raise ValueError(f"{model.cfg.model_name} has no tokenizer, which a report needs to show texts.")
    absent = [language for language in (*config.controls, *config.stages) if language not in corpus]
    if absent:
        raise ValueError(f"{absent[0]!r} is to have controls or stages; the corpus has {', '.join(corpus)}.")
    with contextlib.suppress(ImportError):
        identifier(config.identifier, ["en", "ru"])


class _Report(Measurement):
    """All that a report shows."""

    def run_all(self) -> None:
        for language, neurons in self.sets.items():
            self.piece(f"neurons/{language}", NeuronSet, lambda neurons=neurons: neurons)
        for kind in ("specific", "active"):
            counts = neuron_counts(self.detection, kind=kind, quorum=self.config.quorum)
            self.folder.table(f"counts-{kind}", counts)
        self.folder.table("overlap", overlap(self.detection, quorum=self.config.quorum))
        reason, layers = self.identifier[1], self.model.cfg.n_layers
        self.effects(self.ratio("language-ratio"))
        self.cards()
        self.completions()
        missing = {"language-ratio": reason} if reason else {}
        if layers < len(STAGES):
            missing["stage-grid"] = f"{layers} layers are too few for three stages."
        self.folder.document("missing", missing)

    def effects(self, ratio: LanguageRatio | None) -> None:
        logger.info("Measuring: effects, row by row")
        place, options = self.folder.path / "study", {"detection": self.detection, "progress": self.progress}
        run, _ = run_effects(self.model, self.held_out, place, self.config, **options)
        self.piece("effects", EffectMatrix, lambda: run.effects)
        self.folder.table("effects", run.effects.to_frame())
        self.folder.table("selectivity", run.effects.selectivity())
        if run.grid:
            grid = self.piece("stage-grid", StageGrid, lambda: run.grid)
            self.folder.table("stages", grid.to_frame())
            self.piece("workflow", Workflow, workflow, grid, ratio)

    def cards(self) -> None:
        options = {"max_tokens": self.config.max_tokens, "progress": self.progress}
        options["token_languages"] = self.labels(self.identifier[0])
        for language, neurons in self.sets.items():
            shown = most_specific(self.detection, neurons, language, self.config.cards)
            self.piece(f"cards/{language}", NeuronCards, inspect, self.model, shown, self.held_out, **options)

    def completions(self) -> None:
        parts = [self._completions(language, neurons) for language, neurons in self.sets.items()]
        rows = tuple(row for part in parts for row in part.rows)
        self.piece("generations", Generations, lambda: Generations(rows, parts[0].settings))

    def _completions(self, language: str, neurons: NeuronSet) -> Generations:
        config, options = self.config, {"identify": self.identifier[0], "languages": list(self.held_out)}
        off = {OWN: neurons, MATCHED: matched_control(neurons, self.detection, seed=config.seed)}
        prompts = {language: list(_prompt_prefixes(self.model, self.prompts[language]))}
        options |= {"max_new_tokens": config.new_tokens, "progress": self.progress}
        return self.piece(f"completions/{language}", Generations, generations, self.model, off, prompts, **options)


def findings(effects: EffectMatrix, ratio: LanguageRatio | None = None) -> list[str]:
    """Sentences on what a run shows, from its own numbers: selectivity, its control, and what the layers speak."""
    selectivity, frame = effects.selectivity(), effects.to_frame()
    own = [row for row in selectivity.index if row in frame.columns]
    clear = [row for row in own if verdict(*selectivity.loc[row, ["low", "high"]]) == "above"]
    text = [
        f"Switching off a language's own neurons ({size_range(selectivity.loc[own, 'neurons'])} neurons) raises that "
        f"language's loss the most for {most_raised(effects, own)}. The rise is above the mean rise of the others, "
        f"with its whole 95 % interval, for {len(clear)} ({', '.join(clear) or 'none'})."
    ]
    text += [effects.finding(row) for row in _compared(effects)]
    return [*text, *ratio_finding(ratio)]


def most_raised(effects: EffectMatrix, rows: Sequence[str], of: int | None = None) -> str:
    """Of how many languages' sets the own language's loss rises the most, and which."""
    frame = effects.to_frame()
    most = [row for row in rows if frame.loc[row].idxmax() == row]
    return f"{len(most)} of {len(rows) if of is None else of} languages ({', '.join(most) or 'none'})"


def ratio_finding(ratio: LanguageRatio | None) -> list[str]:
    """What the layers speak, where that can be said."""
    return [ratio.finding("en")] if ratio and "en" in ratio.languages and set(ratio.counts) - {"en"} else []


def _compared(effects: EffectMatrix) -> list[str]:
    """A language that has controls, and its score-matched one."""
    matched = [row for row in effects.rows if row.startswith("matched for ")][:1]
    return [name for row in matched for name in (row.removeprefix("matched for "), row)]


def size_range(numbers: Sequence[int]) -> str:
    """The smallest and the largest."""
    low, high = int(min(numbers)), int(max(numbers))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def most_specific(detection: Detection, neurons: NeuronSet, language: str, number: int) -> NeuronSet:
    """Of a language's neurons, those whose mean score there exceeds that of every other language by the largest factor.

    Of ``v`` and ``mlp`` where the set has any there, since only these write to the residual stream.

    Args:
        detection: where the mean scores come from.
        neurons: the set.
        language: whose it is.
        number: how many to keep, at most.
    """
    writing = neurons.restrict(sites=[site for site in neurons.masks if site in ("v", "mlp")])
    candidates = writing if len(writing) else neurons
    rivals = [other for other in detection.languages if other != language]
    factors = []
    for site, mask in candidates.masks.items():
        other = torch.stack([detection.mean_scores[rival][site] for rival in rivals]).amax(0)
        factor = detection.mean_scores[language][site] / other.clamp_min(1e-30)
        factors += [(float(factor[layer, i]), (layer, site, i)) for layer, i in mask.nonzero().tolist()]
    return NeuronSet.from_list(neurons.space, [place for _, place in sorted(factors, reverse=True)[:number]])


def _prompt_prefixes(model: HookedModel, passages: Sequence[Any]) -> Iterator[str]:
    """The first words of passages, as many tokens of each."""
    special = set(special_ids(model).tolist())
    for ids in encode(model, passages, list(map(str, range(len(passages)))), None):
        ordinary = [i for i in ids.tolist() if i not in special][:OPENING]
        yield model.tokenizer.decode(ordinary).rstrip("\ufffd")


def _no_identifier(texts: Sequence[str]) -> list[str | None]:
    """An identifier that identifies no language."""
    return [None] * len(texts)
