"""``mwork-lens experiment NAME``: the paper's tables on tasks, its appendix, comparisons of detections, enhancement."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..experiments.settings import TASK_EXPERIMENTS, EnhancementConfig, TaskOptions
from ..settings import (
    DETECTIONS,
    DetectionSettings,
    ModelSettings,
    OutputSettings,
    ResumedOutput,
    TextSettings,
)
from .options import print_written

if TYPE_CHECKING:
    from ..detection import Kind


def task_command(name: str) -> Callable[..., None]:
    """The command of one of the paper's tables on tasks."""

    def command(model: ModelSettings, options: TaskOptions, output: ResumedOutput) -> None:
        from ..experiments.tasks import PAPER_VALUES, blocks, gaps, run_task_experiment, task_of

        task_of(name, options)
        result, folder = run_task_experiment(model.load(), name, output.path(name), options)
        for metric in dict.fromkeys([result.metrics[0], result.task.metrics[0]]):
            print(f"\n{result.task.title}: {metric} (rows: neurons off; columns: where)\n\n{blocks(result, metric)}")
        print("\n" + "\n".join([*gaps(result), PAPER_VALUES]))
        print_written(folder.written)

    command.__name__ = name
    command.__doc__ = f"{TASK_EXPERIMENTS[name].item}. The same --output resumes a run that was stopped."
    return command


# --- text and detections ---


@dataclass(frozen=True)
class VocabularyConfig:
    """Words that a corpus may hold."""

    vocabulary: str | None = None
    """A folder of fr.txt, or a .jsonl."""


def corpus(
    model: Annotated[ModelSettings, "device", "dtype"],
    text: TextSettings,
    config: VocabularyConfig,
    output: OutputSettings,
) -> None:
    """The appendix table: documents, tokens, distinct words by language, and coverage of a vocabulary."""
    from ..experiments.corpus import describe_corpus, read_vocabulary
    from ..experiments.folder import ResultsFolder
    from ..model import load_tokenizer

    described = text.load()
    words = None if config.vocabulary is None else read_vocabulary(config.vocabulary, list(described))
    settings = {"corpus": described.describe(), "tokenizer": model.model, "vocabulary": config.vocabulary}
    folder = ResultsFolder.open(output.path("corpus"), "corpus", settings)
    table = describe_corpus(described, tokenizer=load_tokenizer(model.model), vocabulary=words)
    folder.table("corpus", table)
    print(table.drop(columns=["low", "high"]).to_string(na_rep="–", float_format=lambda value: f"{value:.3f}"))
    print_written(folder.written)


@dataclass(frozen=True)
class DetectionsConfig:
    """Saved detections, or passages to make one on."""

    detection: Annotated[list[Path] | None, DETECTIONS] = None
    """A saved detection; repeat it to compare several."""
    passages: int = TaskOptions.passages

    def open(
        self, name: str, output: OutputSettings, model: ModelSettings, text: TextSettings, rule: DetectionSettings
    ) -> tuple[Any, Any]:
        """The results folder of an experiment, and the detections by name."""
        from ..experiments.folder import open_detections

        text = replace(text, limit=self.passages)
        return open_detections(output.path(name), name, self.detection or (), model.load, text, rule)


Unlimited = Annotated[TextSettings, "limit"]
Rule = Annotated[DetectionSettings, "max_tokens"]


def overlap(
    model: ModelSettings, text: Unlimited, config: DetectionsConfig, selection: Rule, output: OutputSettings
) -> None:
    """The overlap heat maps: active neurons that languages share, compared with chance; several detections together."""
    from .. import plots
    from ..detection import comparison

    folder, detections = config.open("overlap", output, model, text, selection)
    table = comparison.overlap(detections, quorum=selection.quorum)
    folder.table("overlap", table)
    folder.figure("overlap", plots.overlap(table))
    means = table.pivot_table(index=["detection", "structure"], values=["share", "expected_share"], sort=False)
    print(f"Share of a language's active neurons that another has too, mean over pairs\n\n{means.round(3)}")
    print_written(folder.written)


def neuron_counts(
    model: ModelSettings, text: Unlimited, config: DetectionsConfig, selection: Rule, output: OutputSettings
) -> None:
    """The paper's Fig. 3: specific and active neurons by layer, attention against feed-forward, and their means."""
    from .. import plots
    from ..detection import comparison

    folder, detections = config.open("neuron-counts", output, model, text, selection)
    kinds: tuple[Kind, ...] = ("specific", "active")
    for kind in kinds:
        counts = comparison.neuron_counts(detections, kind=kind, quorum=selection.quorum)
        folder.table(kind, counts)
        folder.figure(kind, plots.neuron_counts(counts, title=f"Language-{kind} neurons by layer"))
        by = ["detection", "structure"]
        totals = counts.pivot_table(index=by, values=["neurons", "width"], aggfunc="sum", sort=False)
        totals["share"] = totals["neurons"] / totals["width"]
        print(f"{kind}: share of all neurons, mean over languages\n\n{totals['share'].round(4).to_string()}\n")
    print_written(folder.written)


# --- enhancement ---


@dataclass(frozen=True)
class DomainSettings:
    """Other text to measure on."""

    xquad: str | None = None
    """Also measure on XQuAD's contexts: its folder, or hub."""
    mgsm: str | None = None
    """Also measure on MGSM's questions: its folder, or hub."""
    domain_passages: int = 20
    """Passages per language, of these two."""

    def load(self, languages: list[str]) -> dict[str, Any]:
        """The text of each that is set, by name."""
        from ..experiments.enhancement import task_text

        return {
            name: task_text(name, None if source == "hub" else source, languages, limit=self.domain_passages)
            for name, source in {"xquad": self.xquad, "mgsm": self.mgsm}.items()
            if source is not None
        }


def enhancement(
    *,
    config: EnhancementConfig,
    model: ModelSettings,
    text: Unlimited,
    domains: DomainSettings,
    output: ResumedOutput = ResumedOutput(Path("mwork-lens-enhancement")),
) -> None:
    """Fig. 4 and the low-resource table: tune a language's neurons, compared with random and matched ones, all
    parameters, its neurons on English text and another language's on its text.

    The same --output resumes a run that was stopped. On two cores, with NTREX-128 and the demo model, the run that
    distinguishes the arms needs many tuned models; smaller ones cut --arms, --rates and the numbers of passages:

    mwork-lens experiment enhancement --tune sw --corpus ntrex/ --sentences-per-passage 3 --documents 120
    --batch-size 8 --micro-batch-size 2 --xquad xquad/ --mgsm mgsm/ --output enhancement-sw
    """
    from ..experiments.enhancement import enhancement, formatted_table, write
    from ..experiments.folder import ResultsFolder

    loaded = text.load()
    config.divide(loaded)
    others = domains.load(list(loaded))
    path = output.path("enhancement")
    result = enhancement(model.load(), loaded, path, config, domains=others)
    folder = ResultsFolder(path, result.settings, True)
    write(folder, result)
    for domain in result.read:
        print(f"\n{domain}: change of loss, nats per token, at each arm's own rate or else the paper's\n")
        print(formatted_table(result.table(domain, rate="own" if config.rates else "paper")).to_string())
    print("\n" + "\n".join(result.findings()))
    print_written(folder.written)
