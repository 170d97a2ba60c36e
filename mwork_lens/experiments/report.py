"""The whole picture of one model on one corpus, piece by piece in a folder that resumes; a notebook shows it."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..detection import Detection, detect, matched_control, neuron_counts, overlap
from ..effects import EffectMatrix, StageGrid, Workflow, workflow
from ..generation import Generations, generations
from ..lens import LanguageRatio, NeuronCards, TokenLanguages, inspect, label_vocabulary, language_ratio
from ..model import HookedModel, encode, special_ids
from ..neurons import STAGES, NeuronSet
from ..text import Corpus, Identifier, identifier
from .effects import run_effects, specific_sets
from .folder import ResultsFolder, load_or_run
from .settings import EffectsConfig, ReportConfig

logger = logging.getLogger("mwork_lens")

NAME = "report"
EVERY = 10
"""The language ratio reads every tenth token, from the end."""
OPENING = 12
"""Tokens of a held-out passage that a completion goes on from."""
OWN, MATCHED = "own neurons off", "as many with equal scores off"


def measure(
    model: HookedModel, corpus: Corpus, path: Path, config: ReportConfig, *, progress: bool = True
) -> ResultsFolder:
    """Run what is not at ``path`` yet: detection, sets, language ratio, effects, stages, cards, completions.

    Neurons are detected on one part of the documents, all else is measured on the rest. What cannot be measured (e.g.
    languages that the identifier does not know) is left out, and ``missing.json`` says why.

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
    train, held_out = corpus.split(config.held_out, seed=config.seed)
    settings = asdict(config)
    effects = {field.name: settings.pop(field.name) for field in fields(EffectsConfig)}
    record = {"model": str(model.cfg.model_name), "effects": effects, **settings, "corpus": corpus.describe()}
    folder = ResultsFolder.open(path, NAME, record)
    options = {"top": config.top, "max_tokens": config.max_tokens, "progress": progress}
    found = _step(folder, "detection", Detection, detect, model, train, **options)
    run = _Run(model, held_out, folder, _chosen(config, found, model), found, progress)
    run.everything()
    return folder


def _require(model: HookedModel, corpus: Corpus, config: ReportConfig) -> None:
    """Refuse what would fail after the expensive work."""
    if len(corpus) < 2:
        raise ValueError(f"One language ({', '.join(corpus)}) has nothing to be compared with: give at least two.")
    if model.tokenizer is None:
        raise ValueError(f"{model.cfg.model_name} has no tokenizer, which a report needs to show texts.")
    absent = [language for language in (*config.controls, *config.stages) if language not in corpus]
    if absent:
        raise ValueError(f"{absent[0]!r} is to have controls or stages; the corpus has {', '.join(corpus)}.")
    with contextlib.suppress(ImportError):
        identifier(config.identifier, ["en", "ru"])


def _chosen(config: ReportConfig, found: Detection, model: HookedModel) -> ReportConfig:
    """The config with languages for controls and stages, where it names none."""
    sets = specific_sets(found, config.quorum)
    if not sets:
        rule = f"top={config.top}, quorum={config.quorum}"
        raise ValueError(f"No language has specific neurons at {rule}: lower the quorum.")
    others = [language for language in sets if language != "en"] or list(sets)
    stages = config.stages or (others if model.cfg.n_layers >= len(STAGES) else ())
    return replace(config, controls=config.controls or others[:1], stages=stages)


def _step(folder: ResultsFolder, name: str, *arguments: Any, **options: Any) -> Any:
    """A piece of the folder; says what is being made."""
    if not (folder.path / name).exists():
        logger.info("Measuring: %s", name.replace("-", " "))
    folder.written.append(folder.path / name)
    return load_or_run(folder.path / name, *arguments, **options)


def findings(effects: EffectMatrix, ratio: LanguageRatio | None = None) -> list[str]:
    """Sentences on what a run shows, from its own numbers: selectivity, its control, and what the layers speak."""
    selectivity, frame = effects.selectivity(), effects.to_frame()
    own = [row for row in selectivity.index if row in frame.columns]
    most = [row for row in own if frame.loc[row].idxmax() == row]
    clear = [row for row in own if selectivity.loc[row, "low"] > 0]
    text = [
        f"Switching off a language's own neurons ({_sizes(selectivity.loc[own, 'neurons'])}) raises that language's "
        f"loss the most for {len(most)} of {len(own)} languages ({', '.join(most) or 'none'}). The rise is above the "
        f"mean rise of the others, with its whole 95 % interval, for {len(clear)} ({', '.join(clear) or 'none'})."
    ]
    text += [effects.finding(row) for row in _compared(effects)]
    if ratio is not None and "en" in ratio.languages and set(ratio.counts) - {"en"}:
        text.append(ratio.finding("en"))
    return text


def _compared(effects: EffectMatrix) -> list[str]:
    """A language that has controls, and its score-matched one."""
    matched = [row for row in effects.rows if row.startswith("matched for ")][:1]
    return [name for row in matched for name in (row.removeprefix("matched for "), row)]


def _sizes(numbers: Any) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low:,} neurons" if low == high else f"{low:,} to {high:,} neurons"


@dataclass(frozen=True)
class _Run:
    model: HookedModel
    held_out: Corpus
    folder: ResultsFolder
    config: ReportConfig
    detection: Detection
    progress: bool

    def everything(self) -> None:
        sets = specific_sets(self.detection, self.config.quorum)
        for language, neurons in sets.items():
            _step(self.folder, f"neurons/{language}", NeuronSet, lambda found=neurons: found)
        self._tables()
        tell, missing = self._identifier()
        ratio = None if missing else self._ratio()
        self._effects(ratio)
        self._cards(sets, tell)
        self._completions(sets, tell)
        if self.model.cfg.n_layers < len(STAGES):
            missing["stage-grid"] = f"{self.model.cfg.n_layers} layers are too few for three stages."
        self.folder.document("missing", missing)

    def _tables(self) -> None:
        quorum = self.config.quorum
        for kind in ("specific", "active"):
            self.folder.table(f"counts-{kind}", neuron_counts(self.detection, kind=kind, quorum=quorum))
        self.folder.table("overlap", overlap(self.detection, quorum=quorum))

    def _identifier(self) -> tuple[str | Identifier, dict[str, str]]:
        """The identifier, or one that knows nothing and the reason."""
        asked = list(dict.fromkeys(["en", *self.held_out]))
        try:
            identifier(self.config.identifier, asked)
            # the vocabulary is identified over more languages
            self._labels(self.config.identifier)
        except (ValueError, ImportError) as error:
            logger.warning("Without the languages of tokens and texts: %s", error)
            return _nobody, {"language-ratio": str(error)}
        return self.config.identifier, {}

    def _labels(self, tell: str | Identifier) -> TokenLanguages:
        asked = list(dict.fromkeys(["en", *self.held_out]))
        return label_vocabulary(self.model, asked, identifier=tell)

    def _ratio(self) -> LanguageRatio:
        few = self.held_out.limit(self.config.prompts)
        options = {"positions": slice(None, None, -EVERY), "max_tokens": self.config.max_tokens}
        labels = {"token_languages": self._labels(self.config.identifier), "progress": self.progress}
        return _step(self.folder, "language-ratio", LanguageRatio, language_ratio, self.model, few, **options, **labels)

    def _effects(self, ratio: LanguageRatio | None) -> None:
        logger.info("Measuring: effects, row by row")
        place, options = self.folder.path / "study", {"detection": self.detection, "progress": self.progress}
        study, _ = run_effects(self.model, self.held_out, place, self.config, **options)
        _step(self.folder, "effects", EffectMatrix, lambda: study.effects)
        self.folder.table("effects", study.effects.to_frame())
        self.folder.table("selectivity", study.effects.selectivity())
        if study.grid:
            grid = _step(self.folder, "stage-grid", StageGrid, lambda: study.grid)
            self.folder.table("stages", grid.to_frame())
            _step(self.folder, "workflow", Workflow, workflow, grid, ratio)

    def _cards(self, sets: Mapping[str, NeuronSet], tell: str | Identifier) -> None:
        labels = self._labels(tell)
        options = {"token_languages": labels, "max_tokens": self.config.max_tokens, "progress": self.progress}
        for language, neurons in sets.items():
            shown = characteristic(self.detection, neurons, language, self.config.cards)
            _step(self.folder, f"cards/{language}", NeuronCards, inspect, self.model, shown, self.held_out, **options)

    def _completions(self, sets: Mapping[str, NeuronSet], tell: str | Identifier) -> None:
        found = []
        few = self.held_out.limit(self.config.prompts)
        writing = {"identify": tell, "languages": list(self.held_out), "max_new_tokens": self.config.new_tokens}
        for language, neurons in sets.items():
            off = {OWN: neurons, MATCHED: matched_control(neurons, self.detection, seed=self.config.seed)}
            prompts = {language: list(_openings(self.model, few[language]))}
            name = f"completions/{language}"
            options = {**writing, "progress": self.progress}
            found.append(_step(self.folder, name, Generations, generations, self.model, off, prompts, **options))
        rows = tuple(row for part in found for row in part.rows)
        _step(self.folder, "generations", Generations, lambda: Generations(rows, found[0].settings))


def characteristic(detection: Detection, neurons: NeuronSet, language: str, number: int) -> NeuronSet:
    """Of a language's neurons, those whose mean score there exceeds that of every other language by the largest factor.

    Of ``v`` and ``mlp`` where the set has any there, since only these write to the residual stream.

    Args:
        detection: where the mean scores come from.
        neurons: the set.
        language: whose it is.
        number: how many to keep, at most.
    """
    writing = neurons.restrict(sites=[site for site in neurons.masks if site in ("v", "mlp")])
    chosen = writing if len(writing) else neurons
    rivals = [other for other in detection.languages if other != language]
    factors = []
    for site, mask in chosen.masks.items():
        other = torch.stack([detection.mean_scores[rival][site] for rival in rivals]).amax(0)
        factor = detection.mean_scores[language][site] / other.clamp_min(1e-30)
        factors += [(float(factor[layer, i]), (layer, site, i)) for layer, i in mask.nonzero().tolist()]
    return NeuronSet.from_list(neurons.space, [place for _, place in sorted(factors, reverse=True)[:number]])


def _openings(model: HookedModel, passages: Sequence[Any]) -> Iterator[str]:
    """The first words of passages, as many tokens of each."""
    special = set(special_ids(model).tolist())
    for ids in encode(model, passages, list(map(str, range(len(passages)))), None):
        ordinary = [i for i in ids.tolist() if i not in special][:OPENING]
        yield model.tokenizer.decode(ordinary).rstrip("\ufffd")


def _nobody(texts: Sequence[str]) -> list[str | None]:
    """An identifier that knows no language."""
    return [None] * len(texts)
