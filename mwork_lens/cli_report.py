"""``mwork-lens report``: everything about one model on one corpus, as results, a notebook and a page."""

from pathlib import Path
from typing import Annotated

import typer

from .cli import (
    DEMO_LANGUAGES,
    CorpusOption,
    DeviceOption,
    DtypeOption,
    GenerationOption,
    LanguagesOption,
    LimitOption,
    ModelOption,
    QuorumOption,
    SentencesOption,
    TokensOption,
    TopOption,
    UnderstandingOption,
    _corpus,
    _model,
    _say_written,
    _tags,
    app,
)

HELD_OUT = typer.Option("--held-out", help="Share of the documents to measure on, not to detect on.")
PASSAGES = typer.Option("--passages", help="Of these, at most so many a language in the effects.")
CONTROLS = typer.Option("--controls", help="Languages whose sets get every control; one by default.")
SEEDS = typer.Option("--seeds", help="Draws of each control.")
STAGES = typer.Option("--stages", help="Languages of the stage grid; by default all but English.")
PROMPTS = typer.Option("--prompts", help="Held-out passages a language that the lens reads and completions go on from.")
NEW_TOKENS = typer.Option("--max-new-tokens", help="Of each completion.")
CARDS = typer.Option("--cards", help="Neurons to show of each language.")
IDENTIFIER = typer.Option("--identifier", help="lingua, script or cld3.")
NOTEBOOK = typer.Option("--notebook", help="Your own copy of the report's notebook, instead of the package's.")
OUTPUT = typer.Option("--output", help="A new directory, or one to resume.")


@app.command()
def report(
    model: ModelOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    languages: LanguagesOption = None,
    corpus: CorpusOption = "demo",
    sentences_per_passage: SentencesOption = 1,
    limit: LimitOption = None,
    held_out: Annotated[float, HELD_OUT] = 0.25,
    passages: Annotated[int | None, PASSAGES] = None,
    controls: Annotated[str | None, CONTROLS] = None,
    seeds: Annotated[int, SEEDS] = 1,
    stages: Annotated[str | None, STAGES] = None,
    understanding: UnderstandingOption = None,
    generation: GenerationOption = None,
    top: TopOption = 0.2,
    quorum: QuorumOption = 0.9,
    max_tokens: TokensOption = 512,
    prompts: Annotated[int, PROMPTS] = 5,
    max_new_tokens: Annotated[int, NEW_TOKENS] = 24,
    cards: Annotated[int, CARDS] = 6,
    identifier: Annotated[str, IDENTIFIER] = "lingua",
    notebook: Annotated[Path | None, NOTEBOOK] = None,
    output: Annotated[Path, OUTPUT] = Path("mwork-lens-report"),
) -> None:
    """Everything about one model on one corpus: results, an executed notebook, and one HTML page that needs no network.

    A run that was stopped goes on when it is given the same --output and options. The notebook only shows what is in
    the folder: copy OUTPUT/report.ipynb, edit it, and give it as --notebook for a page of your own.
    """
    from .detection import selection_rule
    from .experiments.effects import Plan
    from .experiments.report import ReportPlan, measure
    from .notebook import execute, render, require_extra

    require_extra()
    selection_rule(top, None)
    _require_counts({"--seeds": seeds, "--prompts": prompts, "--max-new-tokens": max_new_tokens, "--cards": cards})
    if notebook is not None and not notebook.is_file():
        raise FileNotFoundError(f"There is no notebook {str(notebook)!r}.")
    effects = Plan(
        passages=passages, controls=_tags(controls), seeds=tuple(range(seeds)), stages=_tags(stages), top=top,
        understanding=understanding, generation=generation, quorum=quorum, max_tokens=max_tokens,
    )  # fmt: skip
    plan = ReportPlan(effects, held_out, prompts, max_new_tokens, cards, identifier)
    chosen = languages or (DEMO_LANGUAGES if corpus == "demo" else None)
    text = _corpus(corpus, chosen, sentences_per_passage, limit)
    hooked = _model(model, device, dtype)
    folder = measure(hooked, text, output, plan)
    shown = execute(notebook, output / "report.ipynb", {"folder": str(output.resolve())})
    page = render(shown, output / "report.html", title=f"Languages inside {hooked.cfg.model_name}")
    _say_written([page, shown, folder.path])


def _require_counts(options: dict[str, int]) -> None:
    for option, number in options.items():
        if number < 1:
            raise ValueError(f"{option} {number}: it must be at least 1.")
