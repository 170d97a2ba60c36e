"""``mwork-lens ratio`` and ``experiment language-ratio``: which language each layer speaks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from .options import CorpusOptions, LimitOption, ModelOptions, OutputOption, new_folder, positive, say_written

TopKOption = Annotated[int, Option("--top-k", help="Tokens that each position decodes to.")]
IdentifierOption = Annotated[str, Option("--identifier", help="lingua, script or cld3.")]
EveryOption = Annotated[int, Option("--every", help="Read every n-th token only, to save time.")]


def ratio(
    model: ModelOptions,
    text: CorpusOptions,
    limit: LimitOption = 5,
    top_k: TopKOption = 10,
    by: Annotated[str, Option("--by", help="count of the top k, or probability mass.")] = "count",
    identifier: IdentifierOption = "lingua",
    every: EveryOption = 1,
    new_tokens: Annotated[int, Option("--new-tokens", help="Tokens to generate after each prompt.")] = 0,
    raw: Annotated[bool, Option("--raw", help="Without the final norm, as the paper's code reads.")] = False,
    grid: Annotated[str | None, Option("--text", help="Also a layer by token grid of this text.")] = None,
    validate: Annotated[bool, Option("--validate", help="Only score the identifier on the corpus.")] = False,
    output: OutputOption = None,
) -> None:
    """Which language each layer speaks: decoded tokens by language and layer, beside chance."""
    from .. import lens

    positions = _every(every)
    folder = new_folder(output, "ratio")
    prompts = text.prompts(None if validate else limit)
    _require_identifier(identifier, list(prompts) if validate else ["en", *prompts])
    hooked = model.load()
    if validate:
        return _validate(folder, hooked, prompts, identifier)
    reading: dict[str, Any] = {"normalize": not raw, "identifier": identifier}
    counting: dict[str, Any] = {"by": by, "positions": positions, "new_tokens": new_tokens}
    measured = lens.language_ratio(hooked, prompts, top_k=top_k, **counting, **reading)
    written = _write_ratio(folder, measured)
    if grid is not None:
        written += _write_grid(folder, lens.lens_grid(hooked, grid, languages=measured.languages, **reading))
    say_written(written)


def language_ratio(
    model: ModelOptions,
    text: CorpusOptions,
    limit: LimitOption = 20,
    top_k: TopKOption = 10,
    identifier: IdentifierOption = "lingua",
    every: EveryOption = 4,
    output: OutputOption = None,
) -> None:
    """The paper's Fig. 1 and 5: English and non-English tokens by layer, and each language, beside chance."""
    from .. import lens

    positions = _every(every)
    folder = new_folder(output, "language-ratio")
    prompts = text.prompts(limit)
    _require_identifier(identifier, ["en", *prompts])
    measured = lens.language_ratio(model.load(), prompts, top_k=top_k, positions=positions, identifier=identifier)
    say_written(_write_ratio(folder, measured))


def _every(every: int) -> slice | None:
    return None if positive("--every", every) == 1 else slice(every // 2, None, every)


def _require_identifier(name: str, languages: Sequence[str]) -> None:
    """Refuse what the identifier does not know before the model is loaded."""
    from ..text import identifier

    identifier(name, list(dict.fromkeys(languages)))


def _validate(folder: Path, model: Any, prompts: Any, identifier: str) -> None:
    from .. import lens

    accuracy = lens.identifier_accuracy(model, prompts, name=identifier)
    accuracy.to_frame().to_csv(folder / "identifier.csv")
    print(accuracy)
    say_written([folder / "identifier.csv"])


def _write_ratio(folder: Path, measured: Any) -> list[Path]:
    """The result, its table and its figures; prints the verdict."""
    from .. import plots
    from ..report import write_figure

    measured.save(folder / "ratio")
    frame = measured.to_frame()
    frame.to_csv(folder / "ratio.csv", index=False)
    frame.to_json(folder / "ratio.json", orient="records", indent=1, force_ascii=False)
    figures = {
        "ratio": plots.language_ratio(measured),
        "heatmap": plots.language_heatmap(measured),
        "lift": plots.language_heatmap(measured, value="lift"),
        "english": plots.language_ratio(measured.two_way("en")),
    }
    written = [path for name, figure in figures.items() for path in write_figure(folder / name, figure)]
    if set(measured.counts) - {"en"}:
        print(measured.finding("en"))
    return [folder / "ratio", folder / "ratio.csv", folder / "ratio.json", *written]


def _write_grid(folder: Path, grid: Any) -> list[Path]:
    from .. import plots
    from ..report import write_figure

    grid.to_frame().to_csv(folder / "grid.csv", index=False)
    return [folder / "grid.csv", *write_figure(folder / "grid", plots.lens_grid(grid))]
