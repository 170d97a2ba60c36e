"""``mwork-lens ratio`` and ``experiment language-ratio``: which language each layer speaks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from ..experiments.settings import ReportConfig
from ..settings import ModelSettings, OutputSettings, Positive, TextSettings
from .options import print_written, write


@dataclass(frozen=True)
class DecodingConfig:
    """What is decoded, and how its language is identified."""

    top_k: int = 10
    """Tokens that each position decodes to."""
    identifier: str = ReportConfig.identifier
    every: Positive = 1
    """Read every n-th token only, to save time."""

    @property
    def positions(self) -> slice | None:
        """Of the tokens that are read."""
        return None if self.every == 1 else slice(self.every // 2, None, self.every)

    def require_identifier(self, languages: Sequence[str]) -> None:
        """Refuse what the identifier does not know before the model is loaded."""
        from ..text import identifier

        identifier(self.identifier, list(dict.fromkeys(languages)))


@dataclass(frozen=True)
class RatioConfig(DecodingConfig):
    """What is counted, and what else is written."""

    by: str = "count"
    """count of the top k, or probability mass."""
    new_tokens: int = 0
    """Tokens to generate after each prompt."""
    raw: bool = False
    """Without the final norm, as the paper's code reads."""
    grid: Annotated[str | None, "--text"] = None
    """Also a layer by token grid of this text."""
    validate: bool = False
    """Only score the identifier on the corpus."""


def ratio(
    *,
    model: ModelSettings,
    text: TextSettings = TextSettings(limit=5),
    config: RatioConfig,
    output: OutputSettings,
) -> None:
    """Which language each layer speaks: decoded tokens by language and layer, compared with chance."""
    from .. import lens, plots

    folder = output.new_folder("ratio")
    prompts = replace(text, limit=None if config.validate else text.limit).prompts()
    config.require_identifier(list(prompts) if config.validate else ["en", *prompts])
    hooked = model.load()
    if config.validate:
        accuracy = lens.identifier_accuracy(hooked, prompts, name=config.identifier)
        print(accuracy)
        return print_written(write(folder, tables={"identifier": accuracy.to_frame()}))
    reading: dict[str, Any] = {"normalize": not config.raw, "identifier": config.identifier}
    counting: dict[str, Any] = {"by": config.by, "positions": config.positions, "new_tokens": config.new_tokens}
    measured = lens.language_ratio(hooked, prompts, top_k=config.top_k, **counting, **reading)
    written = _write_ratio(folder, measured)
    if config.grid is not None:
        grid = lens.lens_grid(hooked, config.grid, languages=measured.languages, **reading)
        written += write(folder, tables={"grid": grid.to_frame()}, figures={"grid": plots.lens_grid(grid)})
    print_written(written)


def language_ratio(
    *,
    model: ModelSettings,
    text: TextSettings = TextSettings(limit=20),
    config: DecodingConfig = DecodingConfig(every=4),
    output: OutputSettings,
) -> None:
    """The paper's Fig. 1 and 5: English and non-English tokens by layer, and each language, compared with chance."""
    from ..lens import language_ratio

    folder = output.new_folder("language-ratio")
    prompts = text.prompts()
    config.require_identifier(["en", *prompts])
    options: dict[str, Any] = {"positions": config.positions, "identifier": config.identifier}
    print_written(_write_ratio(folder, language_ratio(model.load(), prompts, top_k=config.top_k, **options)))


def _write_ratio(folder: Path, measured: Any) -> list[Path]:
    """The result, its table and its figures; prints the verdict."""
    from .. import plots

    figures = {
        "ratio": plots.language_ratio(measured),
        "heatmap": plots.language_heatmap(measured),
        "lift": plots.language_heatmap(measured, value="lift"),
        "english": plots.language_ratio(measured.two_way("en")),
    }
    frame = measured.to_frame()
    written = write(folder, results={"ratio": measured}, tables={"ratio": frame}, figures=figures)
    frame.to_json(folder / "ratio.json", orient="records", indent=1, force_ascii=False)
    if set(measured.counts) - {"en"}:
        print(measured.finding("en"))
    return [*written, folder / "ratio.json"]
