"""How far closed forms are from ablation on tiny random models of every exact family: the check must be silent.

Not a test (it takes minutes). ``python -W ignore -m tests.benchmarks.self_check --models 200``.
"""

import argparse
import contextlib
import io
from collections.abc import Iterator
from itertools import product
from typing import Any

import pandas as pd
import torch

import mwork_lens as mw

from ..decoders import DECODERS, transformers_model
from ..decoders.row import GENERATION
from ..words import words

DTYPES = torch.float32, torch.bfloat16, torch.float64


def models() -> Iterator[tuple[str, Any]]:
    """By name: families as HookedTransformers where there are any, rows of the table of decoders; other seeds later."""
    rows = [row for row in DECODERS if row.can_be_built and not row.refused and GENERATION in row.generations]
    for seed in range(100):
        if GENERATION == "3.9":
            from ..tiny import FAMILIES, tiny

            for family, dtype in product(FAMILIES, DTYPES):
                yield f"{family} {dtype} {seed}", tiny(family, dtype, seed, 2 + seed % 3, (8, 16)[seed % 2])
        for row, dtype in product(rows, DTYPES[: 2 if seed == 0 else 3]):
            theirs, generator = transformers_model.__wrapped__(row, torch.float64), torch.Generator().manual_seed(seed)
            for parameter in theirs.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
            tokenizer = words()
            tokenizer.init_kwargs |= {"name_or_path": "words", "add_bos_token": True}
            try:
                yield f"{row} {dtype} {seed}", mw.load_model(theirs, tokenizer=tokenizer, device="cpu", dtype=dtype)
            except Exception as error:  # not a matter of the check
                print(f"{row} {dtype}: not loaded: {str(error)[:150]}", flush=True)


def main() -> None:
    """Print the distribution of differences by dtype, and every neuron that counts as wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--reach", type=int, default=64, help="the longest document")
    options, tables = parser.parse_args(), []
    for name, model in models():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                lengths = mw.detection.checking.check_lengths(model, options.reach)
                tables += [mw.check_scores(model, length=length).assign(model=name) for length in lengths]
        except Exception as error:  # a model that does not run in this dtype
            print(f"{name}: not scored: {str(error)[:150]}", flush=True)
            continue
        if not tables[-1].exact.all():
            print(name, tables[-1][~tables[-1].exact].head(3).to_string(), flush=True)
        if len({table.model[0] for table in tables}) == options.models:
            break
    checks = pd.concat(tables)
    print(checks.groupby("dtype").relative.describe(percentiles=[0.5, 0.99, 0.999]).to_string())
    wrong = checks[~checks.exact].model.nunique()
    print(f"{checks.model.nunique()} models, {len(checks)} neurons, {wrong} models with a false alarm")


if __name__ == "__main__":
    main()
