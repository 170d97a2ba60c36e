"""``mwork-lens report``: everything about one model on one corpus, as results, a notebook and a page."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from .demo import LANGUAGES
from .options import (
    CorpusOptions,
    LimitOption,
    ModelOptions,
    ResumedOption,
    SelectionOptions,
    TokensOption,
    parts,
    positive,
    say_written,
)


@dataclass(frozen=True)
class ReportOptions:
    """What a report measures."""

    held_out: Annotated[float, Option("--held-out", help="Share of the documents to measure on.")] = 0.25
    passages: Annotated[int | None, Option("--passages", help="Of these, at most so many in the effects.")] = None
    controls: Annotated[str | None, Option("--controls", help="Languages with controls; one by default.")] = None
    seeds: Annotated[int, Option("--seeds", help="Draws of each control.")] = 1
    stages: Annotated[str | None, Option("--stages", help="Languages of the stage grid; all but English.")] = None
    understanding: Annotated[int | None, Option("--understanding", help="N1: first layers that understand.")] = None
    generation: Annotated[int | None, Option("--generation", help="N2: last layers that generate.")] = None
    prompts: Annotated[int, Option("--prompts", help="Passages a language that the lens reads, or go on.")] = 5
    new_tokens: Annotated[int, Option("--max-new-tokens", help="Of each completion.")] = 24
    cards: Annotated[int, Option("--cards", help="Neurons to show of each language.")] = 6
    identifier: Annotated[str, Option("--identifier", help="lingua, script or cld3.")] = "lingua"

    def plan(self, selection: SelectionOptions, max_tokens: int) -> Any:
        """What to do.

        Raises:
            ValueError: for a number below 1.
        """
        from ..experiments.effects import Plan
        from ..experiments.report import ReportPlan

        least = {"--prompts": self.prompts, "--max-new-tokens": self.new_tokens, "--cards": self.cards}
        for option, number in least.items():
            positive(option, number)
        effects = Plan(
            passages=self.passages,
            controls=tuple(parts(self.controls) or ()),
            seeds=tuple(range(positive("--seeds", self.seeds))),
            stages=tuple(parts(self.stages) or ()),
            understanding=self.understanding,
            generation=self.generation,
            top=selection.top,
            quorum=selection.quorum,
            max_tokens=max_tokens,
        )
        return ReportPlan(effects, self.held_out, self.prompts, self.new_tokens, self.cards, self.identifier)


def report(
    model: ModelOptions,
    text: CorpusOptions,
    selection: SelectionOptions,
    what: ReportOptions,
    limit: LimitOption = None,
    max_tokens: TokensOption = 512,
    notebook: Annotated[Path | None, Option("--notebook", help="Your own copy of the report's notebook.")] = None,
    output: ResumedOption = None,
) -> None:
    """Everything about one model on one corpus: results, an executed notebook, and one page that needs no network.

    A run that was stopped goes on when it is given the same --output and options. The notebook only shows what is in
    the folder: copy OUTPUT/report.ipynb, edit it, and give it as --notebook for a page of your own.
    """
    from ..experiments.report import measure
    from ..report import execute, render, require_extra

    require_extra()
    selection.check()
    plan = what.plan(selection, max_tokens)
    if notebook is not None and not notebook.is_file():
        raise FileNotFoundError(f"There is no notebook {str(notebook)!r}.")
    by_default = LANGUAGES if text.corpus == "demo" else None
    corpus = replace(text, languages=text.languages or by_default).load(limit)
    hooked = model.load()
    folder = measure(hooked, corpus, output or Path("mwork-lens-report"), plan)
    shown = execute(notebook, folder.path / "report.ipynb", {"folder": str(folder.path.resolve())})
    page = render(shown, folder.path / "report.html", title=f"Languages inside {hooked.cfg.model_name}")
    say_written([page, shown, folder.path])
