"""The experiment: every arm at every rate, number of documents and seed, beside the original model."""

import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ...detection import Detection, detect
from ...model import HookedModel, dtype_of, encode
from ...text import Corpus
from ...tuning import Diverged, predicted
from ..folder import ResultsFolder
from ..settings import EnhancementConfig
from .result import DEVELOPMENT, HELD_OUT, Enhancement, Read
from .runs import Encoded, Outcome, Run, carry_out, measure
from .set_builders import neurons_of, text_of

logger = logging.getLogger("mwork_lens")

NAME = "enhancement"
_LISTS = ("languages", "documents", "arms", "seeds", "rates")


def enhancement(
    model: HookedModel,
    corpus: Corpus,
    folder: str | Path,
    design: EnhancementConfig,
    *,
    domains: Mapping[str, Corpus] | None = None,
    progress: bool = True,
) -> Enhancement:
    """Tune each arm, measure the loss of every language on documents that nothing else has seen, put weights back.

    Whatever is in ``folder`` already is not run again: after a kill, call it as before.

    Args:
        model: a hooked model; it is as before afterwards.
        corpus: text by language, best parallel; divided into detection, tuning, development and evaluation documents.
        folder: where the pieces are kept.
        design: what is compared.
        domains: other text by language to measure on, by name (XQuAD contexts, MGSM questions).
        progress: whether to show a bar.

    Raises:
        ValueError: for a language that the corpus lacks or that has no neurons of its own, too few documents, or a
            folder that holds another experiment.
    """
    parts = design.divide(corpus)
    read = {HELD_OUT: parts["evaluation"], **(domains or {})}
    lab = _Lab(model, Path(folder), design, parts, read)
    ResultsFolder.open(folder, NAME, lab.settings())
    lab.prepare(progress)
    with tqdm(unit="run", disable=not progress, total=lab.total()) as bar:
        lab.bar = bar
        original = lab.original()
        own = {
            language: {arm: lab.own_rate(language, arm) for arm in design.arms_of(language)}
            for language in design.languages
        }
        outcomes = [lab.outcome("runs", run, lab.evaluation) for run in _runs(design, own)]
    return Enhancement(original, outcomes, lab.read, {**lab.settings(), "own_rates": own, "trials": lab.trials})


def _runs(design: EnhancementConfig, own: Mapping[str, Mapping[str, float | None]]) -> Iterator[Run]:
    """Every arm at the paper's rate and at its own, most telling first: the largest number of documents."""
    for documents, seed, language in product(sorted(design.documents, reverse=True), design.seeds, design.languages):
        for arm in design.arms_of(language):
            for rate in dict.fromkeys([own[language][arm], design.paper_rate]):
                if rate is not None:
                    yield Run(language, arm, documents, rate, seed)


class _Lab:
    """What all runs share."""

    def __init__(
        self,
        model: HookedModel,
        folder: Path,
        design: EnhancementConfig,
        parts: Mapping[str, Corpus],
        read: Mapping[str, Corpus],
    ) -> None:
        self.model, self.folder, self.design, self.parts, self.corpora = model, folder, design, parts, read
        self.trials: list[dict[str, Any]] = []
        self.bar: Any = None

    def settings(self) -> dict[str, Any]:
        """Everything that decides the result."""
        corpora = {**self.parts, **{name: corpus for name, corpus in self.corpora.items() if name != HELD_OUT}}
        return {
            "model": str(self.model.cfg.model_name),
            "dtype": str(dtype_of(self.model)),
            "design": {**asdict(self.design), **{name: list(getattr(self.design, name)) for name in _LISTS}},
            "corpora": {name: corpus.describe() for name, corpus in corpora.items()},
        }

    def prepare(self, progress: bool) -> None:
        """Token ids, the detection, and a look at every arm's neurons before any is tuned."""
        design = self.design
        self.evaluation: Encoded = {name: self._encoded(corpus) for name, corpus in self.corpora.items()}
        self.development: Encoded = {DEVELOPMENT: self._encoded(self.parts["development"])}
        self.tuning = self._encoded(self.parts["tuning"])
        self.read = {
            name: Read.of(self.model, self.corpora[name], by_read) for name, by_read in self.evaluation.items()
        }
        path = self.folder / "detection"
        if not path.exists():
            options = {"top": design.top, "max_tokens": design.max_tokens, "progress": progress}
            detect(self.model, self.parts["detection"], **options).save(path)
        self.detection = Detection.load(path)
        for language in design.languages:
            for arm in design.arms_of(language):
                neurons_of(arm, language, self.detection, design, design.seeds[0])

    def _encoded(self, corpus: Corpus) -> dict[str, list[torch.Tensor]]:
        return {read: encode(self.model, corpus[read], corpus.ids[read], self.design.max_tokens) for read in corpus}

    def total(self) -> int:
        """How many models are measured: the original one, trials and runs."""
        design, arms = self.design, sum(len(self.design.arms_of(language)) for language in self.design.languages)
        kinds = (1 if design.rates else 0) + (design.paper_rate is not None)
        trials = len(design.rates) if len(design.rates) > 1 else 0
        return 1 + arms * (trials + len(design.documents) * len(design.seeds) * kinds)

    def original(self) -> Outcome:
        """The model before tuning."""
        everything = {**self.evaluation, **self.development}
        return self._kept("original", lambda: Outcome(None, measure(self.model, everything), {}))

    def own_rate(self, language: str, arm: str) -> float | None:
        """The rate with the lowest development loss of the language, for most documents and the first seed.

        A single rate needs no trial.
        """
        if len(self.design.rates) == 1:
            return self.design.rates[0]
        losses = {}
        for rate in self.design.rates:
            run = Run(language, arm, max(self.design.documents), rate, self.design.seeds[0])
            losses[rate] = self._development_loss(run)
            self.trials.append({**asdict(run), "development_loss": losses[rate]})
        if not losses:
            return None
        best = min(losses, key=lambda rate: losses[rate])
        if not math.isfinite(losses[best]):
            raise ValueError(f"{language} {arm}: the loss is not finite at any of the rates {list(losses)}.")
        return best

    def _development_loss(self, run: Run) -> float:
        passages = {run.language: self.development[DEVELOPMENT][run.language]}
        found = self.outcome("trials", run, {DEVELOPMENT: passages})
        if not found.nats:
            return math.inf
        tokens = sum(predicted(self.model, ids) for ids in passages[run.language])
        return float(found.nats[DEVELOPMENT][run.language].sum()) / tokens

    def outcome(self, kind: str, run: Run, encoded: Encoded) -> Outcome:
        """Of a run: as it is on disk, else carried out now."""
        return self._kept(f"{kind}/{run.name}", lambda: self._carry_out(kind, run, encoded))

    def _carry_out(self, kind: str, run: Run, encoded: Encoded) -> Outcome:
        design, texts = self.design, self.tuning[text_of(run.arm, run.language)]
        neurons = neurons_of(run.arm, run.language, self.detection, design, run.seed)
        recipe = {name: getattr(design, name) for name in ("batch_size", "micro_batch_size", "epochs", "max_tokens")}
        try:
            return carry_out(self.model, run, neurons, _chosen(texts, run), encoded, **recipe)
        except Diverged as error:
            if kind != "trials":
                raise
            logger.warning("%s: %s", run.name, error)
            return Outcome(run, {}, {"diverged": str(error)})

    def _kept(self, name: str, make: Callable[[], Outcome]) -> Outcome:
        path = self.folder / name
        self.bar.set_description(Path(name).name)
        if not path.exists():
            make().save(path)
        self.bar.update()
        return Outcome.load(path)


def _chosen(texts: Sequence[Any], run: Run) -> list[Any]:
    """The run's passages: the same ones for every arm and language of the text, the fewer among the more."""
    order = list(range(len(texts)))
    random.Random(run.seed).shuffle(order)
    return [texts[i] for i in order[: run.documents]]
