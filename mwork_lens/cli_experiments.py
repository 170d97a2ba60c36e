"""``mwork-lens experiment NAME``: the paper's items on tasks, and the analyses of sets and text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli import (
    CorpusOption,
    DeviceOption,
    DtypeOption,
    LanguagesOption,
    ModelOption,
    OutputOption,
    QuorumOption,
    SentencesOption,
    TopOption,
    _model,
    _say_written,
    experiment,
)

if TYPE_CHECKING:
    from .comparison import Kind

DataOption = Annotated[str | None, typer.Option("--data", help="The task's file, or a folder with one a language.")]
QuestionsOption = Annotated[int | None, typer.Option("--limit", help="At most this many questions a language.")]
OffOption = Annotated[str | None, typer.Option("--off", help="Whose neurons to switch off; by default those asked.")]
DetectionOption = Annotated[Path | None, typer.Option("--detection", help="A saved detection, instead of --corpus.")]
DetectionsOption = Annotated[
    list[Path] | None, typer.Option("--detection", help="A saved detection; repeat it to compare several.")
]
PassagesOption = Annotated[int, typer.Option("--passages", help="Of each language, to find sets on.")]
ArmsOption = Annotated[str | None, typer.Option("--arms", help="Rows of the table, with commas.")]
NewTokensOption = Annotated[int, typer.Option("--max-new-tokens", help="After which an answer ends.")]
PromptOption = Annotated[int, typer.Option("--max-tokens", help="Articles are cut so that a prompt is no longer.")]
WithoutOption = Annotated[Path | None, typer.Option("--without", help="A file of question ids to leave out.")]
ChatOption = Annotated[bool | None, typer.Option("--chat/--no-chat", help="By default if there is a template.")]
UnderstandingOption = Annotated[int | None, typer.Option("--understanding", help="N1; a quarter of the layers.")]
GenerationOption = Annotated[int | None, typer.Option("--generation", help="N2; an eighth of the layers.")]
TaskOption = Annotated[str | None, typer.Option("--task", help="xquad, mgsm, xcsqa or xlsum; the paper's by default.")]
ResumedOutput = Annotated[Path | None, typer.Option("--output", help="A new directory, or one to resume.")]


def _task_command(name: str) -> Any:
    def command(
        model: ModelOption = "demo",
        device: DeviceOption = None,
        dtype: DtypeOption = "float32",
        languages: LanguagesOption = None,
        data: DataOption = None,
        task: TaskOption = None,
        limit: QuestionsOption = None,
        without: WithoutOption = None,
        max_new_tokens: NewTokensOption = 128,
        max_tokens: PromptOption = 512,
        chat: ChatOption = None,
        off: OffOption = None,
        arms: ArmsOption = None,
        detection: DetectionOption = None,
        corpus: CorpusOption = "demo",
        sentences_per_passage: SentencesOption = 1,
        passages: PassagesOption = 40,
        top: TopOption = 0.2,
        quorum: QuorumOption = 0.9,
        understanding: UnderstandingOption = None,
        generation: GenerationOption = None,
        batch_size: Annotated[int, typer.Option("--batch-size", help="Prompts at a time.")] = 16,
        seed: Annotated[int, typer.Option("--seed", help="Of the random neurons.")] = 0,
        output: ResumedOutput = None,
    ) -> None:
        from .experiments.tasks import PAPER_VALUES, TaskOptions, blocks, run_task_experiment

        options = TaskOptions(
            data=data,
            languages=_parts(languages),
            off=_parts(off),
            limit=limit,
            without=_lines(without),
            task=_one_of_tasks(task),
            arms=_parts(arms),
            quorum=quorum,
            understanding=understanding,
            generation=generation,
            chat=chat,
            max_new_tokens=_positive("--max-new-tokens", max_new_tokens),
            max_tokens=_positive("--max-tokens", max_tokens),
            seed=seed,
            batch_size=_positive("--batch-size", batch_size),
            detection=None if detection is None else str(detection),
            corpus=corpus,
            passages=passages,
            sentences_per_passage=sentences_per_passage,
            top=top,
        )
        result, folder = run_task_experiment(_model(model, device, dtype), name, output or _fresh(name), options)
        for metric in dict.fromkeys([result.metrics[0], result.task.metrics[0]]):
            print(f"\n{result.task.title}: {metric} (rows: neurons off; columns: where)\n\n{blocks(result, metric)}")
        print(f"\n{PAPER_VALUES}")
        _say_written(folder.written)

    command.__doc__ = f"{TASK_COMMANDS[name]}, with neurons off; --output goes on with a run that was stopped."
    return command


# their settings are in experiments/tasks.py, which is slow to import
TASK_COMMANDS = {
    "summarization": "Table 1: XL-Sum",
    "understanding": "XQuAD by stage",
    "reasoning": "MGSM by stage and structure",
    "knowledge": "X-CSQA by stage and structure",
    "generation": "XL-Sum by stage and structure",
    "english-overlap": "All active neurons against those that are not English's too",
}
for _name in TASK_COMMANDS:
    experiment.command(_name)(_task_command(_name))


def _parts(given: str | None) -> list[str] | None:
    if given is None:
        return None
    return list(dict.fromkeys(part.strip() for part in given.split(",") if part.strip()))


def _lines(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of question ids {str(path)!r}.")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _positive(option: str, number: int) -> int:
    if number < 1:
        raise ValueError(f"{option} {number}: it must be at least 1.")
    return number


def _one_of_tasks(name: str | None) -> str | None:
    from .evaluation.tasks import TASKS

    if name is not None and name not in TASKS:
        raise ValueError(f"There is no task {name!r}; there are {', '.join(TASKS)}.")
    return name


def _fresh(name: str) -> Path:
    """The first free directory named after the experiment."""
    candidates = (Path(f"mwork-lens-{name}" if i == 1 else f"mwork-lens-{name}-{i}") for i in range(1, 10_000))
    return next(path for path in candidates if not path.exists())


@experiment.command("corpus")
def experiment_corpus(
    model: ModelOption = "demo",
    languages: LanguagesOption = None,
    corpus: CorpusOption = "demo",
    sentences_per_passage: SentencesOption = 1,
    limit: Annotated[int | None, typer.Option("--limit", help="At most this many passages a language.")] = None,
    vocabulary: Annotated[str | None, typer.Option("--vocabulary", help="A folder of fr.txt, or a .jsonl.")] = None,
    output: OutputOption = None,
) -> None:
    """The appendix table: documents, tokens, distinct words by language, and coverage of a vocabulary."""
    from .corpora import load_corpus
    from .experiments.corpus import describe_corpus, read_vocabulary
    from .experiments.folder import ResultsFolder
    from .models import load_tokenizer

    tags = _parts(languages)
    text = load_corpus(corpus, languages=tags, sentences_per_passage=sentences_per_passage, limit=limit)
    words = None if vocabulary is None else read_vocabulary(vocabulary, list(text))
    settings = {"corpus": text.describe(), "tokenizer": model, "vocabulary": vocabulary}
    folder = ResultsFolder.open(output or _fresh("corpus"), "corpus", settings)
    found = describe_corpus(text, tokenizer=load_tokenizer(model), vocabulary=words)
    folder.table("corpus", found)
    print(found.drop(columns=["low", "high"]).to_string(na_rep="–", float_format=lambda value: f"{value:.3f}"))
    _say_written(folder.written)


@experiment.command("overlap")
def experiment_overlap(
    model: ModelOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    languages: LanguagesOption = None,
    detection: DetectionsOption = None,
    corpus: CorpusOption = "demo",
    sentences_per_passage: SentencesOption = 1,
    passages: PassagesOption = 40,
    top: TopOption = 0.2,
    quorum: QuorumOption = 0.9,
    output: OutputOption = None,
) -> None:
    """The overlap heat maps: active neurons that languages share, beside chance; several detections side by side."""
    from . import plots
    from .comparison import overlap
    from .experiments.detections import open_detections

    asked = {"quorum": quorum, "top": top}
    corpus_options = {"languages": _parts(languages), "sentences_per_passage": sentences_per_passage, "limit": passages}
    folder, found = open_detections(
        output or _fresh("overlap"), "overlap", detection or (), lambda: _model(model, device, dtype), corpus,
        corpus_options, asked,
    )  # fmt: skip
    compared = overlap(found, quorum=quorum)
    folder.table("overlap", compared)
    folder.figure("overlap", plots.overlap(compared))
    means = compared.pivot_table(index=["detection", "structure"], values=["share", "expected_share"], sort=False)
    print(f"Share of a language's active neurons that another has too, mean over pairs\n\n{means.round(3)}")
    _say_written(folder.written)


@experiment.command("neuron-counts")
def experiment_neuron_counts(
    model: ModelOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    languages: LanguagesOption = None,
    detection: DetectionsOption = None,
    corpus: CorpusOption = "demo",
    sentences_per_passage: SentencesOption = 1,
    passages: PassagesOption = 40,
    top: TopOption = 0.2,
    quorum: QuorumOption = 0.9,
    output: OutputOption = None,
) -> None:
    """The paper's Fig. 3: specific and active neurons by layer, attention against feed-forward, and their means."""
    from . import plots
    from .comparison import neuron_counts
    from .experiments.detections import open_detections

    asked = {"quorum": quorum, "top": top}
    corpus_options = {"languages": _parts(languages), "sentences_per_passage": sentences_per_passage, "limit": passages}
    folder, found = open_detections(
        output or _fresh("neuron-counts"), "neuron-counts", detection or (), lambda: _model(model, device, dtype),
        corpus, corpus_options, asked,
    )  # fmt: skip
    kinds: tuple[Kind, ...] = ("specific", "active")
    for kind in kinds:
        counted = neuron_counts(found, kind=kind, quorum=quorum)
        folder.table(kind, counted)
        folder.figure(kind, plots.neuron_counts(counted, title=f"Language-{kind} neurons by layer"))
        totals = counted.pivot_table(
            index=["detection", "structure"], values=["neurons", "width"], aggfunc="sum", sort=False
        )
        totals["share"] = totals["neurons"] / totals["width"]
        print(f"{kind}: share of all neurons, mean over languages\n\n{totals['share'].round(4).to_string()}\n")
    _say_written(folder.written)
