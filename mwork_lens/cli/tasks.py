"""``mwork-lens experiment NAME``: the paper's tables on tasks."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from .options import (
    CorpusOptions,
    ModelOptions,
    PassagesOption,
    ResumedOption,
    SelectionOptions,
    parts,
    positive,
    saved_detection,
    say_written,
    unused,
)

# their settings are in experiments/tasks.py, which is slow to import
TASK_COMMANDS = {
    "summarization": "Table 1: XL-Sum",
    "understanding": "XQuAD by stage",
    "reasoning": "MGSM by stage and structure",
    "knowledge": "X-CSQA by stage and structure",
    "generation": "XL-Sum by stage and structure",
    "english-overlap": "All active neurons against those that are not English's too",
}


@dataclass(frozen=True)
class QuestionOptions:
    """What is asked, and how."""

    data: Annotated[str | None, Option("--data", help="The task's file, or a folder with one a language.")] = None
    task: Annotated[str | None, Option("--task", help="xquad, mgsm, xcsqa or xlsum; the paper's by default.")] = None
    limit: Annotated[int | None, Option("--limit", help="At most this many questions a language.")] = None
    without: Annotated[Path | None, Option("--without", help="A file of question ids to leave out.")] = None
    max_new_tokens: Annotated[int, Option("--max-new-tokens", help="After which an answer ends.")] = 128
    max_tokens: Annotated[int, Option("--max-tokens", help="Articles are cut so that a prompt is no longer.")] = 512
    chat: Annotated[bool | None, Option("--chat/--no-chat", help="By default if there is a template.")] = None
    batch_size: Annotated[int, Option("--batch-size", help="Prompts at a time.")] = 16

    def checked(self) -> dict[str, object]:
        """As ``TaskOptions`` takes them.

        Raises:
            ValueError: for a number below 1, or a task that there is not.
            FileNotFoundError: without the file of ids.
        """
        for option, number in {"max-new-tokens": self.max_new_tokens, "max-tokens": self.max_tokens}.items():
            positive(f"--{option}", number)
        positive("--batch-size", self.batch_size)
        return {**asdict(self), "task": _known(self.task), "without": _lines(self.without)}


@dataclass(frozen=True)
class OffOptions:
    """Whose neurons are switched off, and where they come from."""

    off: Annotated[str | None, Option("--off", help="Whose neurons to switch off; by default those asked.")] = None
    arms: Annotated[str | None, Option("--arms", help="Rows of the table, with commas.")] = None
    detection: Annotated[Path | None, Option("--detection", help="A saved detection, instead of --corpus.")] = None
    passages: PassagesOption = 40
    understanding: Annotated[int | None, Option("--understanding", help="N1; a quarter of the layers.")] = None
    generation: Annotated[int | None, Option("--generation", help="N2; an eighth of the layers.")] = None
    seed: Annotated[int, Option("--seed", help="Of the random neurons.")] = 0

    def parsed(self) -> dict[str, object]:
        """As ``TaskOptions`` takes them."""
        detection = None if self.detection is None else str(saved_detection(self.detection))
        return {**asdict(self), "off": parts(self.off), "arms": parts(self.arms), "detection": detection}


def task_command(name: str) -> Callable[..., None]:
    """The command of one of the paper's tables."""

    def command(
        model: ModelOptions,
        text: CorpusOptions,
        questions: QuestionOptions,
        switched: OffOptions,
        selection: SelectionOptions,
        output: ResumedOption = None,
    ) -> None:
        from ..experiments.tasks import PAPER_VALUES, TaskOptions, blocks, gaps, run_task_experiment

        found_on = {**asdict(text), **asdict(selection), "languages": parts(text.languages)}
        options = TaskOptions(**questions.checked(), **switched.parsed(), **found_on)
        result, folder = run_task_experiment(model.load(), name, output or unused(name), options)
        for metric in dict.fromkeys([result.metrics[0], result.task.metrics[0]]):
            print(f"\n{result.task.title}: {metric} (rows: neurons off; columns: where)\n\n{blocks(result, metric)}")
        print("\n" + "\n".join([*gaps(result), PAPER_VALUES]))
        say_written(folder.written)

    command.__name__ = name
    command.__doc__ = f"{TASK_COMMANDS[name]}, with neurons off; --output goes on with a run that was stopped."
    return command


def _known(name: str | None) -> str | None:
    from ..tasks import TASKS

    if name is not None and name not in TASKS:
        raise ValueError(f"There is no task {name!r}; there are {', '.join(TASKS)}.")
    return name


def _lines(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of question ids {str(path)!r}.")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
