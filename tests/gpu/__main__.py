"""Tables of times and memory on a GPU, by layer: ``python -m tests.gpu --output folder``; nothing runs without CUDA.

Times are medians of rounds in which all methods take turns, by CUDA events, after a first run that compiles. Layers of
a whole model are extrapolated from those of a small one. ``--device cpu --tiny`` tries the script itself.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import plotly.express as px
import torch

import mwork_lens as mw
from mwork_lens.bench import Clock, measured, tuning_cost
from mwork_lens.detection import cut_to_size
from mwork_lens.detection.detecting import BatchCounts
from mwork_lens.lens.vocabulary import TokenLanguages
from mwork_lens.measures import Selection, exact
from mwork_lens.measures.plnd.published import parallel
from mwork_lens.model.budget import Budget
from mwork_lens.model.forward import Encoded, TokenBatch, stream
from mwork_lens.neurons import NeuronSet, NeuronSpace

from .shapes import SHAPES, VOCABULARY, Shape, hooked, of_transformers

LENGTHS, LAYERS, ROUNDS, PARALLEL_UP_TO = (128, 256, 512, 1024, 2048, 4096), 2, 5, 512
DOCUMENTS, FRACTION = 64, 0.005
"""Of each of two languages, and of the neurons that are switched off or tuned, beside the scores."""


def a_batch(documents: int, length: int, device: str) -> TokenBatch:
    """Of random tokens."""
    ids = torch.randint(1, VOCABULARY, (documents, length), generator=torch.Generator().manual_seed(length))
    content = torch.ones_like(ids, dtype=torch.bool)
    rows = tuple(range(documents))
    return TokenBatch(ids, content, (length,) * documents, rows).to(torch.device(device))


def full(budget: Budget, length: int) -> int:
    """Documents that fill a batch."""
    documents = 1
    while budget.holds(documents + 1, length):
        documents += 1
    return documents


@torch.inference_mode()
def rows(shape: Shape, lengths, layers: int, device: str, dtype: torch.dtype) -> list[dict]:
    """One row by length, size of the batch and method."""
    model, theirs = hooked(shape, layers, dtype, device), of_transformers(shape, layers, dtype, device)
    found = []
    for length in lengths:
        for documents in dict.fromkeys((1, full(Budget.of(model), length))):
            batch = a_batch(documents, length, device)

            def forward(_: int, clock: Clock, batch=batch) -> None:
                clock.tick()
                for _ in stream(model, [batch], checked=False):
                    pass
                clock.tick()

            def scores(measure, _: int, clock: Clock, batch=batch) -> None:
                clock.tick()
                for _ in BatchCounts(Selection(top=0.2)).over(model, measure, [batch]):
                    pass
                clock.tick()

            def sdpa(_: int, clock: Clock, batch=batch) -> None:
                clock.tick()
                theirs(batch.tokens)
                clock.tick()

            runs = {"forward": forward, "transformers, sdpa": sdpa, "every score": partial(scores, exact())}
            costs = measured(runs, torch.device(device), ROUNDS)
            if documents == 1 and length <= PARALLEL_UP_TO:
                once = {"paper's parallel form": partial(scores, parallel)}
                costs |= measured(once, torch.device(device), 1)
            for name, cost in costs.items():
                row = {"shape": shape.name, "tokens": length, "documents": documents, "method": name}
                row["milliseconds_a_layer"] = 1000 * cost.seconds / layers
                row["whole_model_seconds"] = cost.seconds / layers * shape.layers
                row["over_forward"] = cost.seconds / costs["forward"].seconds
                row["over_sdpa"] = cost.seconds / costs["transformers, sdpa"].seconds
                found.append({**row, "peak_megabytes": cost.megabytes})
            print(pd.DataFrame(found[-len(costs) :]).to_string(index=False), flush=True)
    return found


def other_analyses(shape: Shape, length: int, layers: int, device: str, dtype: torch.dtype) -> list[dict]:
    """What is read twice with neurons off, through the lens and for means, over the same text's bare forward pass."""
    model = hooked(shape, layers, dtype, device)
    ids = torch.randint(1, VOCABULARY, (2, DOCUMENTS, length), generator=torch.Generator().manual_seed(length))
    corpus = {language: list(each) for language, each in zip(("en", "fr"), ids, strict=True)}
    everything = ~NeuronSet.empty(NeuronSpace.of(model))
    some = cut_to_size(everything, round(FRACTION * len(everything)), seed=0)
    names = ("en", "fr", "shared", "other")
    labels = TokenLanguages(torch.arange(VOCABULARY) % len(names), names, {"identifier": "by number"})
    quiet = {"progress": False}

    def forward() -> None:
        for _ in stream(model, Encoded.of(model, corpus).plan()):
            pass

    works = {
        "forward": forward,
        "effect_matrix, one row": lambda: mw.effect_matrix(model, {"fr": some}, corpus, **quiet),
        "language_ratio": lambda: mw.language_ratio(model, corpus, token_languages=labels, **quiet),
        "collect_means": lambda: mw.collect_means(model, corpus, **quiet),
    }

    def timed(work, _: int, clock: Clock) -> None:
        clock.tick()
        work()
        clock.tick()

    costs = measured({name: partial(timed, work) for name, work in works.items()}, torch.device(device), ROUNDS)
    about = {"shape": shape.name, "tokens": length, "documents": 2 * DOCUMENTS, "layers": layers}
    found = [
        {**about, "method": name, "seconds": cost.seconds, "over_forward": cost.seconds / costs["forward"].seconds}
        for name, cost in costs.items()
    ]
    print(pd.DataFrame(found).to_string(index=False), flush=True)
    return found


def tuning(shape: Shape, length: int, layers: int, device: str, dtype: torch.dtype) -> list[dict]:
    """Steps on some neurons, and on all parameters."""
    cost = tuning_cost(hooked(shape, layers, dtype, device), torch.arange(1, length + 1), fraction=FRACTION)
    frame = cost.to_frame().reset_index().assign(shape=shape.name, tokens=length, layers=layers)
    print(frame.to_string(index=False), flush=True)
    return frame.to_dict("records")


def main() -> None:
    """Measure, print, and write one JSON and one PNG."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="try the script: one small shape, short texts")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device: nothing was measured on a GPU.")
    shapes, lengths, dtype = SHAPES, LENGTHS, torch.bfloat16
    if args.tiny:
        shapes, lengths, dtype = (Shape("tiny", 4, 2, 8, 24, 20, 2),), (8, 16), torch.float32
    found = [row for shape in shapes for row in rows(shape, lengths, LAYERS, args.device, dtype)]
    others = [row for shape in shapes for row in other_analyses(shape, lengths[0], LAYERS, args.device, dtype)]
    tuned = [row for shape in shapes for row in tuning(shape, lengths[0], LAYERS, args.device, dtype)]
    args.output.mkdir(parents=True, exist_ok=True)
    cuda = args.device == "cuda"
    device = torch.cuda.get_device_name() if cuda else args.device
    about = {"device": device, "torch": torch.__version__, "dtype": str(dtype), "layers": LAYERS, "rounds": ROUNDS}
    (args.output / "gpu.json").write_text(
        json.dumps({"about": about, "rows": found, "other analyses": others, "tuning": tuned}, indent=1)
    )
    frame = pd.DataFrame(found)
    frame["batch"] = frame.documents.map(lambda documents: "one document" if documents == 1 else "a full batch")
    figure = px.line(
        frame,
        x="tokens",
        y="over_forward",
        color="method",
        facet_col="shape",
        facet_row="batch",
        log_x=True,
        log_y=True,
        labels={"over_forward": "time / bare forward pass"},
    )
    figure.update_layout(title=f"Time over the bare forward pass ({device})")
    try:
        figure.write_image(args.output / "gpu.png", width=1000, height=700)
    except (ValueError, RuntimeError) as error:  # without Kaleido or a browser
        print(f"no figure: {error}")


if __name__ == "__main__":
    main()
