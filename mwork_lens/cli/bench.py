"""``mwork-lens bench``: what detection and tuning cost."""

import json
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from .options import (
    CorpusOption,
    CorpusOptions,
    LanguagesOption,
    ModelOptions,
    OutputOption,
    new_folder,
    numbers,
    say_written,
)


def bench(
    model: ModelOptions,
    languages: LanguagesOption = "en,zh",
    corpus: CorpusOption = "demo",
    lengths: Annotated[str, Option("--lengths", help="Tokens a document, with commas.")] = "64,128,256,512,1024",
    parallel_up_to: Annotated[int, Option("--parallel-up-to", help="Longest document for the paper's form.")] = 128,
    tuning: Annotated[int | None, Option("--tuning", help="Instead: tuning, on this many tokens.")] = None,
    output: OutputOption = None,
) -> None:
    """What detection costs beside the bare forward pass, exact scores of every neuron and the paper's form.

    With --tuning: what tuning 0.5 % of the neurons costs beside tuning all parameters.
    """
    tokens = numbers("--lengths", lengths if tuning is None else str(tuning))
    folder = new_folder(output, "bench")
    text = CorpusOptions(languages, corpus).load()
    hooked = model.load()
    if tuning is None:
        _detection(hooked, text, tokens, parallel_up_to, folder)
    else:
        _tuning(hooked, text, tuning, folder)


def _detection(model: Any, text: Any, lengths: list[int], parallel_up_to: int, folder: Path) -> None:
    from .. import plots
    from ..bench import benchmark
    from ..report import write_figure

    found = benchmark(model, text, lengths=lengths, parallel_up_to=parallel_up_to)
    found.to_frame().to_csv(folder / "bench.csv", index=False)
    for value, (said, digits) in _TOLD.items():
        print(f"\n{said}\n\n" + found.table(value).to_string(float_format=f"{{:.{digits}f}}".format, na_rep="–"))
    figure = write_figure(folder / "bench", plots.benchmark(found))
    say_written([folder / "bench.csv", *figure, _write_settings(folder, found)])


_TOLD = {
    "ratio": ("Time over the bare forward pass through the blocks, by tokens of a document", 2),
    "megabytes_above_forward": ("Peak memory above it, MB", 0),
    "as_dense": ("Share of active neurons that exact scores of every neuron make active too", 4),
}


def _tuning(model: Any, text: Any, tokens: int, folder: Path) -> None:
    from ..bench import joined_text
    from ..bench_tuning import tuning_cost

    language = next(iter(text))
    found = tuning_cost(model, joined_text(model, text[language], language, tokens)[:tokens])
    found.to_frame().to_csv(folder / "tuning.csv")
    print("\nTime a step, peak memory above the loaded model, optimiser state\n")
    print(found.to_frame().to_string(float_format=lambda value: f"{value:.2f}"))
    print("\nTuning neurons over tuning all parameters\n")
    print(found.ratios().to_string(float_format=lambda value: f"{value:.4f}"))
    say_written([folder / "tuning.csv", _write_settings(folder, found)])


def _write_settings(folder: Path, found: Any) -> Path:
    path = folder / "settings.json"
    path.write_text(json.dumps(dict(found.settings), indent=2, ensure_ascii=False))
    return path
