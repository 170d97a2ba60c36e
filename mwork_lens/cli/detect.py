"""``mwork-lens detect``: each language's neurons."""

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from .options import (
    CorpusOptions,
    LimitOption,
    ModelOptions,
    OutputOption,
    SelectionOptions,
    TokensOption,
    new_folder,
    say_written,
)


def detect(
    model: ModelOptions,
    text: CorpusOptions,
    selection: SelectionOptions,
    threshold: Annotated[float | None, Option("--threshold", help="Instead of --top: a least score.")] = None,
    formulation: Annotated[str, Option("--formulation", help="exact, paper or released.")] = "exact",
    scope: Annotated[str, Option("--scope", help="Top fraction of each layer, or of the whole model.")] = "layer",
    limit: LimitOption = None,
    max_tokens: TokensOption = 512,
    output: OutputOption = None,
) -> None:
    """Find each language's neurons; writes the detection, each language's specific set and their counts by layer."""
    from ..detection import detection

    detection.selection_rule(selection.top, threshold)
    folder = new_folder(output, "detection")
    corpus = text.load(limit)
    how: dict[str, Any] = {"formulation": formulation, "scope": scope, "max_tokens": max_tokens}
    found = detection.detect(model.load(), corpus, top=selection.top, threshold=threshold, **how)
    say_written(_write(folder, found, selection.quorum))


def _write(folder: Path, found: Any, quorum: float) -> list[Path]:
    """The detection, each language's set, and their counts as a table and a figure; prints the sets."""
    from .. import plots
    from ..detection import neuron_counts
    from ..report import write_figure

    found.save(folder / "detection")
    compared = len(found.languages) > 1
    counted = neuron_counts(found, kind="specific" if compared else "active", quorum=quorum)
    counted.to_csv(folder / "counts.csv", index=False)
    written = [folder / "detection", folder / "counts.csv"]
    written += write_figure(folder / "counts", plots.neuron_counts(counted))
    for language in found.languages:
        neurons = found.specific(language, quorum=quorum) if compared else found.active(language)
        neurons.save(folder / language)
        written.append(folder / language)
        print(neurons)
    return written
