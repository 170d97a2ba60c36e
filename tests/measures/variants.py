"""Every variant of the kernels, compiled for GPUs that need not be there: ``python -m tests.measures.variants``.

A table of registers, bytes that spill, and bytes of shared memory, by variant and compute capability; ``--json`` for
programs. Triton must not have been told to interpret.
"""

import argparse
import json
import re
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mwork_lens.measures.plnd import kernels, kernels_rows, kernels_values
from mwork_lens.measures.plnd.attention import Geometry
from mwork_lens.measures.plnd.batched import options_of_rows, options_of_turn

from ..tiny import FAMILIES, tiny

CAPABILITIES = (80, 90)
HEADS, WIDTH = 32, 128
WARPS = {"squares_of_rows": kernels_rows.WARPS, "squares_of_values": kernels_values.WARPS}
NUMBERS = {"scale", "eps", "clip", "cap", "far", "smallest", "least_log", "least_log_of_zero", "negligible"}
POINTERS = {"marks": "i8", "content": "i1", "lengths": "i32", "pair": "i64"}
TENSORS = {"out", "pattern", "scores", "levels", "neurons", "others", "totals", "gain", "cosine", "sine"}
SIZES = ("width", "table", "heads")
"""Multiples of 16 in the models that matter, for which a launch compiles other code."""
TENSORS |= {"hidden", "along", "squares", "size", "x", "dots", "normed", "shrink", "own", "grams", "products", "seen"}


def geometries() -> Iterator[Geometry]:
    """Of every family, and of one whose norm takes off the mean."""
    for family in FAMILIES:
        for layer in range(2):
            yield Geometry.of(tiny(family, torch.float32), layer)
    geometry = Geometry.of(tiny("qwen3", torch.float32), 0)
    sides = {name: getattr(geometry, name) for name in ("query", "key")}
    yield replace(
        geometry, **{name: replace(side, norm=replace(side.norm, centred=True)) for name, side in sides.items()}
    )
    yield replace(geometry, rotated_neurons=True)
    yield replace(geometry, causal=False)


def variants() -> Iterator[tuple]:
    """Kernels and what they are compiled for, each once."""
    seen = set()
    for geometry in geometries():
        for of_queries, side in ((True, geometry.query), (False, geometry.key)):
            rows = partial(options_of_rows, geometry, side, HEADS, of_queries=of_queries)
            each = [(kernels_rows.squares_of_rows, rows(far_rows=far)) for far in (False, True)]
            each.append((kernels.turn, options_of_turn(side, WIDTH, rotated_neurons=geometry.rotated_neurons)))
            for kernel, options in each:
                key = (kernel.fn.__name__, tuple(options.items()))
                if key not in seen:
                    seen.add(key)
                    yield kernel, options
    for of_one in (False, True):
        yield kernels.sums_after_norm, {**kernels.SUMMED, "OF_ONE": of_one}
    for heads in (2, 8):
        tiles = kernels_values.tiles(heads, WIDTH)
        yield kernels_values.squares_of_values, {**tiles, "WHICH": 2, "DOTS": True}
        yield kernels_values.squares_of_values, {**tiles, "WHICH": 1, "DOTS": False}


def argument(name: str) -> str:
    """Its type, as the launches give it."""
    if name in POINTERS or name in TENSORS:
        return f"*{POINTERS.get(name, 'bf16' if name in ('x', 'hidden') else 'fp32')}"
    return "fp32" if name in NUMBERS or name == "per_d_model" else "i32"


def compiled(kernel, options: dict, capability: int) -> dict:
    """Registers, bytes spilled and bytes shared of one variant."""
    names, arguments = kernel.arg_names, {name: argument(name) for name in kernel.arg_names if name not in options}
    if kernel is kernels.sums_after_norm:
        arguments["scale"] = "*fp32"
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in arguments.items() if kind[0] == "*"}
    values = kernel is kernels_values.squares_of_values  # whose heads are those of a group
    aligned |= {
        (names.index(name),): [["tt.divisibility", 16]]
        for name in SIZES
        if name in arguments and not (values and name == "heads")
    }
    signature = {name: arguments.get(name, "constexpr") for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in options.items()}, aligned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = triton.compile(
            source,
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": WARPS[kernel.fn.__name__]} if kernel.fn.__name__ in WARPS else {},
        )
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    binary = Path("/dev/shm" if Path("/dev/shm").exists() else "/tmp") / f"mwork-lens-{id(built)}.cubin"
    binary.write_bytes(built.asm["cubin"])
    try:
        usage = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    finally:
        binary.unlink()
    registers, stack = (int(number) for number in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    names = [name for name, value in options.items() if value is True or (name == "OWNERS" and value > 1)]
    return {
        "kernel": kernel.fn.__name__,
        "for": " ".join(names).lower(),
        "capability": capability,
        "registers": registers,
        "spilled": stack,
        "shared": built.metadata.shared,
    }


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--half", action="store_true", help="each variant for one capability, by turns")
    args = parser.parse_args()
    as_json = args.json
    for number, (kernel, options) in enumerate(variants()):
        for capability in CAPABILITIES[number % 2 :: 2] if args.half else CAPABILITIES:
            row = compiled(kernel, options, capability)
            print(json.dumps(row) if as_json else "  ".join(f"{value!s:>6}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
