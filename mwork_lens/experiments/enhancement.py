"""Does tuning only a language's neurons improve it without harm to others? Fig. 4 and the low-resource table."""

import contextlib
import logging
import math
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from itertools import product
from operator import or_
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from tqdm.auto import tqdm

from .. import plots
from ..detection import Detection, detect
from ..effects import passage_nats, require_counted
from ..effects.overlap import Statuses, check_overlap, seen_finding, statuses_of
from ..model import Encoded, HookedModel, model_record, settled
from ..neurons import NeuronSet
from ..report import Section
from ..settings import TUNED_ARMS, EnhancementConfig
from ..store import user_path
from ..store.processes import hidden
from ..tasks import ENGLISH, TASKS, load_questions
from ..text import Corpus, SeenDocuments
from ..tuning import Diverged, tune
from ..tuning.enhancement import HELD_OUT, RATES, SEEN_BY, Enhancement, Passages, Rate, Run, RunResult
from ..tuning.masked import kept_weights
from ..tuning.recipe import predicted
from .folder import ResultsFolder, load_or_run, piece_name
from .sets import arm_set

logger = logging.getLogger("mwork_lens")

TEXT_FIELDS = {"xquad": "context", "mgsm": "question"}
"""Tasks with running text, and where it is."""
READING = (
    "Change of next-token loss on documents that neither detection, nor tuning, nor the choice of rates has seen, in "
    "nats per token, against the original model: below zero, tuning helped. Intervals are 95 % by the jackknife over "
    "documents and seeds; they do not cover the choice of tuning text. Every arm reads the same passages in equally "
    "many steps. An arm's own rate is the one with the lowest development loss of the tuned language."
)
PAPER_VALUES = "The paper's values (task scores of other models) are not available here."
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
    language to measure on, by name. A ValueError names what cannot be divided, or has no neurons to tune.
    """
    parts, path, domains = config.divide(corpus), user_path(folder), domains or {}
    if taken := domains.keys() & {HELD_OUT, *parts}:
        raise ValueError(f"A part of the corpus is called {min(taken)!r}: give that domain another name.")
    settings = dict(ResultsFolder.open(path, "enhancement", _settings(model, config, {**parts, **domains})).settings)
    del settings["experiment"]
    corpora = {HELD_OUT: parts["evaluation"], **domains, **{name: parts[name] for name in ("development", "tuning")}}
    texts = {name: Encoded.of(model, each, config.max_tokens) for name, each in corpora.items()}
    for encoded in texts.values():
        require_counted(encoded)
    seen = _seen_before({name: corpora[name] for name in (HELD_OUT, *domains)}, parts)
    options = {"top": config.top, "max_tokens": config.max_tokens, "progress": progress}
    detection = load_or_run(path / "detection", Detection, detect, model, parts["detection"], **options)
    runner = Runner(model, path, config, detection, texts.pop("tuning"), texts["development"])
    evaluation = {name: encoded for name, encoded in texts.items() if name != "development"}
    pairs = [(language, arm) for language in config.languages for arm in config.arms_of(language)]
    for pair in pairs:
        runner.neurons(*pair, config.seeds[0])  # refuses what cannot be tuned before anything is
    trials, rates = len(config.rates), bool(config.rates) + (config.paper_rate is not None)
    of_pair = (trials if trials > 1 else 0) + len(config.documents) * len(config.seeds) * rates
    with tqdm(unit="run", disable=hidden(progress), total=1 + len(pairs) * of_pair) as runner.bar:
        original = runner.load_or_run("original", lambda: RunResult(None, runner.losses(texts), {}))
        own = {language: {} for language in config.languages}
        for language, arm in pairs:
            own[language][arm] = runner.own_rate(language, arm)
        # the most informative first: the largest number of documents
        results = [
            runner.result("runs", Run(language, arm, documents, rate, seed), evaluation)
            for documents, seed, (language, arm) in product(sorted(config.documents)[::-1], config.seeds, pairs)
            for rate in dict.fromkeys([own[language][arm], config.paper_rate])
            if rate is not None
        ]
    passages = {name: _passages(model, encoded) for name, encoded in evaluation.items()}
    return Enhancement(
        original, results, passages, {**settings, "own_rates": own, "trials": runner.trials, "seen": seen}
    )


def _settings(model: HookedModel, config: EnhancementConfig, corpora: Mapping[str, Corpus]) -> dict[str, Any]:
    """Everything that decides the result."""
    return {
        **model_record(model),
        "design": {name: value for name, value in asdict(config).items() if name not in _OF_DOMAINS},
        "corpora": {name: corpus.describe() for name, corpus in corpora.items()},
    }


def _seen_before(read: Mapping[str, Corpus], parts: Mapping[str, Corpus]) -> dict[str, Statuses]:
    """Whether each passage that results are measured on was read by detection, choice of rates or tuning; warns."""
    seen = reduce(or_, (SeenDocuments.of(part.identities) for name, part in parts.items() if name != "evaluation"))
    statuses: dict[str, Statuses] = {name: statuses_of(corpus, [seen]) for name, corpus in read.items()}
    for name, corpus in read.items():
        check_overlap(corpus, statuses[name], "warn", stacklevel=4, by=SEEN_BY)
    return statuses


def _passages(model: HookedModel, encoded: Encoded) -> Passages:
    tokens = {read: torch.tensor([predicted(model, row) for row in rows]) for read, rows in encoded.items()}
    return Passages(tokens, encoded.corpus.documents, encoded.corpus.describe())


@dataclass
class Runner:
    """What all runs share."""

    model: HookedModel
    folder: Path
    config: EnhancementConfig
    detection: Detection
    tuning: Encoded
    development: Encoded
    trials: list[dict[str, Any]] = field(default_factory=list)
    bar: Any = None

    def neurons(self, language: str, arm: str, seed: int) -> NeuronSet | Literal["all"]:
        """What an arm tunes; ValueError if the language has no neurons of its own, or the arm has none."""
        if arm == "all":
            return "all"
        top, quorum = self.config.top, self.config.quorum
        if not len(self.detection.specific(language, quorum=quorum)):
            raise ValueError(f"{language!r} has no specific neurons at top={top}, quorum={quorum}.")
        return arm_set(arm, self.detection, language, quorum, seed)

    def losses(self, texts: Texts) -> dict[str, dict[str, torch.Tensor]]:
        """The loss of every passage of the model as it is, by domain and language."""
        return {
            domain: {read: passage_nats(self.model, passages)[0] for read, passages in by_read.items()}
            for domain, by_read in texts.items()
        }

    def own_rate(self, language: str, arm: str) -> float | None:
        """The rate with the lowest development loss, for most documents and the first seed; one needs no trial."""
        config, losses, passages = self.config, {}, self.development[language]
        if len(config.rates) < 2:
            return config.rates[0] if config.rates else None
        tokens = sum(predicted(self.model, ids) for ids in passages)
        for rate in config.rates:
            run = Run(language, arm, max(config.documents), rate, config.seeds[0])
            nats = self.result("trials", run, {"development": {language: passages}}).nats
            losses[rate] = float(nats["development"][language].sum()) / tokens if nats else math.inf
            self.trials.append({**asdict(run), "development_loss": losses[rate]})
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

        return self.load_or_run(f"{kind}/{piece_name(run.name)}", make)

    def _tune_and_measure(self, run: Run, texts: Texts) -> RunResult:
        """Losses of the tuned model, of which every weight is put back bit by bit."""
        start, neurons = time.perf_counter(), self.neurons(run.language, run.arm, run.seed)
        passages = self.tuning[ENGLISH if run.arm == "english-text" else run.language]
        # the same passages for every arm and language of the text, the fewer among the more
        order = list(range(len(passages)))
        random.Random(int(run.seed)).shuffle(order)
        recipe = {key: getattr(self.config, key) for key in ("batch_size", "micro_batch_size", "epochs", "max_tokens")}
        options = {**recipe, "learning_rate": run.rate, "seed": run.seed, "progress": False}
        of_set = isinstance(neurons, NeuronSet)
        with settled(self.model), contextlib.ExitStack() as undo:
            if not of_set:
                undo.enter_context(kept_weights(self.model))
            with warnings.catch_warnings():
                # the share of changed weights is in the metadata
                warnings.filterwarnings("ignore", message="Nearly nothing changed")
                tuned = tune(self.model, neurons, [passages[i] for i in order[: run.documents]], **options)
            if tuned.delta is not None:
                undo.callback(tuned.delta.revert, self.model)
            after_tuning = time.perf_counter()
            nats = self.losses(texts)
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

    def load_or_run(self, name: str, make: Callable[[], RunResult]) -> RunResult:
        """A result at its place in the folder; the bar moves on."""
        self.bar.set_description(Path(name).name)
        result = load_or_run(self.folder / name, RunResult, make)
        self.bar.update()
        return result


def task_texts(config: EnhancementConfig, languages: Sequence[str]) -> dict[str, Corpus]:
    """XQuAD's contexts and MGSM's questions, each once, where they are set and in those languages that the task has."""
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


def write(folder: ResultsFolder, result: Enhancement) -> None:
    """Tables, figures and a page, next to the results of the runs."""
    runs, tried = result.runs(), result.rates()
    rates: list[Rate] = [rate for rate in RATES if rate in set(result.changes["rate"])]
    folder.write({"changes": result.changes, "runs": runs, "rates": tried})
    matrices = {name: result.matrix(name, rate=rates[0]) for name in result.read}
    seen = [f"{name}: {seen_finding(of.documents_read, of.seen_by)}" for name, of in matrices.items()]
    arms = [f"{arm}: {TUNED_ARMS[arm]}." for arm in result.design["arms"]]
    sections = [
        Section("What it shows", [*result.findings(), PAPER_VALUES]),
        Section("How to read this", [READING, *arms, *seen]),
    ]
    for rate in rates:
        for domain in result.read:
            name, figure = f"{domain}-{rate}", plots.enhancement_matrix(result, domain, rate=rate)
            folder.write({f"matrix-{name}": result.matrix(domain, rate=rate).to_frame()})
            sections.append(folder.section(f"Tuned by read: {domain}, {rate} rate", f"matrix-{name}", figure))
            if len(table := result.table(domain, rate=rate)):
                folder.write({f"summary-{name}": table})
                title = f"Own language, English and others: {domain}, {rate} rate"
                sections.append(Section(title, (), formatted_table(table)))
        if len(result.design["documents"]) > 1:
            figure = plots.enhancement_by_documents(result, rate=rate)
            sections.append(folder.section(f"Fig. 4, in loss: {rate} rate", f"by-documents-{rate}", figure))
        figure = plots.enhancement_by_language(result, rate=rate)
        sections.append(folder.section(f"The low-resource table, in loss: {rate} rate", f"by-language-{rate}", figure))
    sections += [Section("Learning rates tried", (), tried), Section("Runs", (), runs)]
    folder.page(f"Tuning a language's neurons: {result.settings['model']}", sections)


def formatted_table(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers of :meth:`Enhancement.table` as one reads them: changes, neurons and rates differ in size."""
    counts = dict.fromkeys(("neurons", "passages", "documents"), "{:,.0f}")
    formats = {**counts, "learning_rate": "{:g}", "role": "{}"}
    columns = {name: table[name].map(formats.get(str(name), "{:+.4f}").format) for name in table}
    return pd.DataFrame(columns).where(table.notna(), "–")
