"""Does tuning only a language's neurons improve it without harm to others? Fig. 4 and the low-resource table."""

import contextlib
import logging
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from tqdm.auto import tqdm

from .. import plots
from ..detection import Detection, detect
from ..effects import passage_nats
from ..model import Encoded, HookedModel, dtype_of
from ..neurons import NeuronSet
from ..report import Section
from ..settings import TUNED_ARMS, EnhancementConfig
from ..tasks import ENGLISH, TASKS, load_questions
from ..text import Corpus
from ..tuning.enhancement import HELD_OUT, RATES, Enhancement, Passages, Rate, Run, RunResult
from ..tuning.loop import Diverged, tune
from ..tuning.masked import kept_weights
from ..tuning.recipe import predicted
from ..tuning.result import Tuned
from .folder import ResultsFolder, load_or_run
from .sets import SET_BUILDERS, SetSource

logger = logging.getLogger("mwork_lens")

TEXT_FIELDS = {"xquad": "context", "mgsm": "question"}
"""Tasks with running text, and where it is."""
READING = (
    "Change of next-token loss on documents that neither detection, nor tuning, nor the choice of rates has seen, in "
    "nats per token, against the original model: below zero, tuning helped. Intervals are 95 % by bootstrap over "
    "documents and seeds; they do not cover the choice of tuning text. Every arm reads the same passages in equally "
    "many steps. An arm's own rate is the one with the lowest development loss of the tuned language."
)
PAPER_VALUES = "The paper's values (task scores of other models) are not available here."
_LISTS = ("languages", "documents", "arms", "seeds", "rates")
_OF_DOMAINS = ("xquad", "mgsm", "domain_passages")

Texts = Mapping[str, Mapping[str, Sequence[torch.Tensor]]]
"""Token ids of passages by domain and language."""


def enhancement(
    model: HookedModel,
    corpus: Corpus,
    folder: str | Path,
    config: EnhancementConfig,
    *,
    domains: Mapping[str, Corpus] | None = None,
    progress: bool = True,
) -> Enhancement:
    """Tune each arm, measure the loss of every language on documents that nothing else has seen, put weights back.

    Whatever is in ``folder`` already is not run again: after a kill, call it as before. ``domains`` are other texts by
    language to measure on, by name.

    Raises:
        ValueError: for a language that the corpus lacks or that has no neurons of its own, too few documents, or a
            folder that holds another experiment.
    """
    parts = config.divide(corpus)
    runner = Runner(model, Path(folder), config, parts, {HELD_OUT: parts["evaluation"], **(domains or {})})
    settings = runner.settings()
    ResultsFolder.open(folder, "enhancement", settings)
    runner.prepare(progress)
    arms = {language: config.arms_of(language) for language in config.languages}
    with tqdm(unit="run", disable=not progress, total=_total(config)) as runner.bar:
        texts = {**runner.evaluation, "development": runner.development}
        original = runner.load_or_run("original", lambda: RunResult(None, runner.losses(texts), {}))
        own = {language: {arm: runner.own_rate(language, arm) for arm in some} for language, some in arms.items()}
        results = [runner.result("runs", run, runner.evaluation) for run in _runs(config, own)]
    passages = {name: _passages(model, encoded) for name, encoded in runner.evaluation.items()}
    return Enhancement(original, results, passages, {**settings, "own_rates": own, "trials": runner.trials})


def _runs(config: EnhancementConfig, own: Mapping[str, Mapping[str, float | None]]) -> Iterator[Run]:
    """Every arm at the paper's rate and at its own, most informative first: the largest number of documents."""
    for documents, seed, language in product(sorted(config.documents, reverse=True), config.seeds, config.languages):
        for arm in config.arms_of(language):
            for rate in dict.fromkeys([own[language][arm], config.paper_rate]):
                if rate is not None:
                    yield Run(language, arm, documents, rate, seed)


def _total(config: EnhancementConfig) -> int:
    """How many models are measured: the original one, trials and runs."""
    rates = (1 if config.rates else 0) + (config.paper_rate is not None)
    trials = len(config.rates) if len(config.rates) > 1 else 0
    arms = sum(len(config.arms_of(language)) for language in config.languages)
    return 1 + arms * (trials + len(config.documents) * len(config.seeds) * rates)


def _passages(model: HookedModel, encoded: Encoded) -> Passages:
    tokens = {read: torch.tensor([predicted(model, row) for row in rows]) for read, rows in encoded.items()}
    return Passages(tokens, encoded.corpus.documents, encoded.corpus.describe())


@dataclass
class Runner:
    """What all runs share."""

    model: HookedModel
    folder: Path
    config: EnhancementConfig
    parts: Mapping[str, Corpus]
    domains: Mapping[str, Corpus]
    trials: list[dict[str, Any]] = field(default_factory=list)
    bar: Any = None

    def settings(self) -> dict[str, Any]:
        """Everything that decides the result."""
        corpora = {**self.parts, **{name: corpus for name, corpus in self.domains.items() if name != HELD_OUT}}
        design = {name: value for name, value in asdict(self.config).items() if name not in _OF_DOMAINS}
        return {
            "model": str(self.model.cfg.model_name),
            "dtype": str(dtype_of(self.model)),
            "design": {**design, **{name: list(design[name]) for name in _LISTS}},
            "corpora": {name: corpus.describe() for name, corpus in corpora.items()},
        }

    def prepare(self, progress: bool) -> None:
        """Token ids, the detection, and a look at every arm's neurons before any is tuned."""
        config, model = self.config, self.model
        corpora = {**{name: self.parts[name] for name in ("development", "tuning")}, **self.domains}
        encoded = {name: Encoded.of(model, corpus, config.max_tokens) for name, corpus in corpora.items()}
        self.development, self.tuning = encoded.pop("development"), encoded.pop("tuning")
        self.evaluation = encoded
        options = {"top": config.top, "max_tokens": config.max_tokens, "progress": progress}
        path, text = self.folder / "detection", self.parts["detection"]
        self.detection = load_or_run(path, Detection, detect, model, text, **options)
        for language in config.languages:
            for arm in config.arms_of(language):
                neurons_of(arm, language, self.detection, config, config.seeds[0])

    def losses(self, texts: Texts) -> dict[str, dict[str, torch.Tensor]]:
        """The loss of every passage of the model as it is, by domain and language."""
        return {
            domain: {read: passage_nats(self.model, passages)[0] for read, passages in by_read.items()}
            for domain, by_read in texts.items()
        }

    def own_rate(self, language: str, arm: str) -> float | None:
        """The rate with the lowest development loss of the language, for most documents and the first seed.

        A single rate needs no trial.
        """
        config, losses = self.config, {}
        if len(config.rates) == 1:
            return config.rates[0]
        passages = self.development[language]
        for rate in config.rates:
            run = Run(language, arm, max(config.documents), rate, config.seeds[0])
            nats = self.result("trials", run, {"development": {language: passages}}).nats
            tokens = sum(predicted(self.model, ids) for ids in passages)
            losses[rate] = float(nats["development"][language].sum()) / tokens if nats else math.inf
            self.trials.append({**asdict(run), "development_loss": losses[rate]})
        if not losses:
            return None
        best = min(losses, key=lambda rate: losses[rate])
        if not math.isfinite(losses[best]):
            raise ValueError(f"{language} {arm}: the loss is not finite at any of the rates {list(losses)}.")
        return best

    def result(self, kind: str, run: Run, texts: Texts) -> RunResult:
        """Of a run: as it is on disk, otherwise of running it; a trial may diverge."""

        def make() -> RunResult:
            try:
                return self._tune_and_measure(run, texts)
            except Diverged as error:
                if kind != "trials":
                    raise
                logger.warning("%s: %s", run.name, error)
                return RunResult(run, {}, {"diverged": str(error)})

        return self.load_or_run(f"{kind}/{run.name}", make)

    def _tune_and_measure(self, run: Run, texts: Texts) -> RunResult:
        start = time.perf_counter()
        neurons = neurons_of(run.arm, run.language, self.detection, self.config, run.seed)
        with self._tuned(run, neurons) as tuned:
            after_tuning = time.perf_counter()
            nats = self.losses(texts)
        of_set = isinstance(neurons, NeuronSet)
        metadata = {
            "neurons": len(neurons) if of_set else None,
            "origin": dict(neurons.origin) if of_set else {},
            "trained": tuned.settings["trained_entries"],
            "changed": None if tuned.delta is None else tuned.changed,
            "steps": len(tuned.steps),
            "tokens": sum(step.tokens for step in tuned.steps),
            "losses": [step.loss for step in tuned.steps],
            "tuning_seconds": after_tuning - start,
            "measuring_seconds": time.perf_counter() - after_tuning,
        }
        return RunResult(run, nats, metadata)

    @contextlib.contextmanager
    def _tuned(self, run: Run, neurons: NeuronSet | Literal["all"]) -> Iterator[Tuned]:
        """The tuned model within the block; every weight is bit-identical to before after it."""
        passages = self.tuning[ENGLISH if run.arm == "english-text" else run.language]
        # the same passages for every arm and language of the text, the fewer among the more
        order = list(range(len(passages)))
        random.Random(run.seed).shuffle(order)
        passages = [passages[i] for i in order[: run.documents]]
        recipe = {key: getattr(self.config, key) for key in ("batch_size", "micro_batch_size", "epochs", "max_tokens")}
        options = {**recipe, "learning_rate": run.rate, "seed": run.seed, "progress": False}
        with contextlib.nullcontext() if isinstance(neurons, NeuronSet) else kept_weights(self.model):
            with warnings.catch_warnings():
                # the share of changed weights is in the metadata
                warnings.filterwarnings("ignore", message="Nearly nothing changed")
                tuned = tune(self.model, neurons, passages, **options)
            try:
                yield tuned
            finally:
                if tuned.delta is not None:
                    tuned.delta.revert(self.model)

    def load_or_run(self, name: str, make: Callable[[], RunResult]) -> RunResult:
        """A result at its place in the folder; the bar moves on."""
        self.bar.set_description(Path(name).name)
        result = load_or_run(self.folder / name, RunResult, make)
        self.bar.update()
        return result


def neurons_of(
    arm: str, language: str, detection: Detection, config: EnhancementConfig, seed: int
) -> NeuronSet | Literal["all"]:
    """What an arm tunes; ValueError if the language has no neurons of its own, or the arm has none."""
    source = SetSource(detection, language, config.quorum, seed)
    if arm == "all":
        return "all"
    if not len(source.specific):
        raise ValueError(f"{language!r} has no specific neurons at top={config.top}, quorum={config.quorum}.")
    return SET_BUILDERS[arm](source)


def task_texts(config: EnhancementConfig, languages: Sequence[str]) -> dict[str, Corpus]:
    """XQuAD's contexts and MGSM's questions, each once, where they are set and in those languages that the task has.

    Raises:
        ValueError: if the task has none of the languages.
    """
    corpora = {}
    for name, text_field in TEXT_FIELDS.items():
        if (source := getattr(config, name)) is None:
            continue
        task, texts, documents = TASKS[name], {}, {}
        shared = [language for language in languages if language in task.languages]
        if not shared:
            raise ValueError(f"{task.title} has none of {', '.join(languages)}; it has {', '.join(task.languages)}.")
        asked = load_questions(task, None if source == "hub" else source, languages=shared)
        for language, questions in asked.items():
            passages = dict.fromkeys((question.document, question.fields[text_field]) for question in questions)
            documents[language], texts[language] = zip(*passages, strict=True)
        parallel = len(set(documents.values())) == 1 and len(documents) > 1
        corpora[name] = Corpus(texts, documents, parallel, f"{name}: {text_field}s").limit(config.domain_passages)
    return corpora


# --- the results folder ---


def write(folder: ResultsFolder, result: Enhancement) -> None:
    """Tables, figures and a page, next to the results of the runs."""
    folder.write({"runs": result.runs(), "rates": result.rates(), "changes": result.changes})
    arms = [f"{arm}: {TUNED_ARMS[arm]}." for arm in result.design["arms"]]
    sections = [
        Section("What it shows", [*result.findings(), PAPER_VALUES]),
        Section("How to read this", [READING, *arms]),
    ]
    rates: list[Rate] = [rate for rate in RATES if rate in set(result.changes["rate"])]
    for rate in rates:
        sections += [section for domain in result.read for section in _matrix(folder, result, domain, rate)]
        figures = {"The low-resource table, in loss": ("language", plots.enhancement_by_language(result, rate=rate))}
        if len(result.design["documents"]) > 1:
            by_documents = plots.enhancement_by_documents(result, rate=rate)
            figures = {"Fig. 4, in loss": ("documents", by_documents), **figures}
        folder.write(figures={f"by-{name}-{rate}": figure for name, figure in figures.values()})
        sections += [Section(f"{title}: {rate} rate", (), figure) for title, (_, figure) in figures.items()]
    sections += [Section("Learning rates tried", (), result.rates()), Section("Runs", (), result.runs())]
    folder.page(f"Tuning a language's neurons: {result.settings['model']}", sections)


def _matrix(folder: ResultsFolder, result: Enhancement, domain: str, rate: Rate) -> list[Section]:
    name = f"{domain}-{rate}"
    figure, table = plots.enhancement_matrix(result, domain, rate=rate), result.table(domain, rate=rate)
    folder.write({f"matrix-{name}": result.matrix(domain, rate=rate).to_frame()}, {f"matrix-{name}": figure})
    sections = [Section(f"Tuned by read: {domain}, {rate} rate", (), figure)]
    if len(table):
        folder.write({f"summary-{name}": table})
        title = f"Own language, English and others: {domain}, {rate} rate"
        sections.append(Section(title, (), formatted_table(table)))
    return sections


def formatted_table(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers of :meth:`Enhancement.table` as one reads them: changes, neurons and rates differ in size."""
    formats = {"neurons": "{:,.0f}", "learning_rate": "{:g}"}
    columns = {name: table[name].map(formats.get(str(name), "{:+.4f}").format) for name in table}
    return pd.DataFrame(columns).where(table.notna(), "–")
