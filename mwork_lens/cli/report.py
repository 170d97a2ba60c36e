"""``mwork-lens demo | report``: everything about one model on one corpus."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..experiments.settings import ReportConfig
from ..settings import (
    DEMO_LANGUAGES,
    DetectionSettings,
    ModelSettings,
    OutputSettings,
    ResumedOutput,
    TextSettings,
)
from .options import print_written


def demo(
    *,
    model: ModelSettings,
    text: TextSettings = TextSettings(limit=40),
    selection: Annotated[DetectionSettings, "max_tokens"],
    output: OutputSettings,
) -> None:
    """The whole story: find each language's neurons, switch them off, measure every language, write a page."""
    from ..experiments.demo import run_demo

    selection.check()
    folder = output.new_folder("demo")
    corpus = text.load(DEMO_LANGUAGES)
    config = ReportConfig(top=selection.top, quorum=selection.quorum, held_out=0.2)
    result = run_demo(model.load(), corpus, folder, config)
    written = result.write()
    print("\nRise of loss on held-out text, nats per token: neurons off (rows), language read (columns)\n")
    print(result.table().to_string(float_format=lambda value: f"{value:.2f}", na_rep="–"))
    print("\n" + "\n".join(result.findings()) + "\n")
    print_written(written)


@dataclass(frozen=True)
class PageConfig:
    """How a report is shown."""

    notebook: Path | None = None
    """Your own copy of the report's notebook."""


def report(
    model: ModelSettings,
    text: TextSettings,
    config: Annotated[ReportConfig, "folds"],
    page: PageConfig,
    output: ResumedOutput,
) -> None:
    """Everything about one model on one corpus: results, an executed notebook, and one page that needs no network.

    The same --output and options resume a run that was stopped. The notebook only shows what is in the folder: copy
    OUTPUT/report.ipynb, edit it, and give it as --notebook for a page of your own.
    """
    from ..experiments.report import measure
    from ..report import execute, render, require_extra

    require_extra()
    config.check()
    notebook = page.notebook
    if notebook is not None and not notebook.is_file():
        raise FileNotFoundError(f"There is no notebook {str(notebook)!r}.")
    corpus = text.load(DEMO_LANGUAGES if text.corpus == "demo" else None)
    hooked = model.load()
    folder = measure(hooked, corpus, output.output or Path("mwork-lens-report"), config)
    shown = execute(notebook, folder.path / "report.ipynb", {"folder": str(folder.path.resolve())})
    html = render(shown, folder.path / "report.html", title=f"Languages inside {hooked.cfg.model_name}")
    print_written([html, shown, folder.path])
