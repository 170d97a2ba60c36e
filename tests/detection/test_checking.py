"""Closed forms that differ from ablation are found before anything rests on them; those that do not are left alone."""

from itertools import product
from weakref import WeakKeyDictionary

import pytest
import torch

import mwork_lens as mw
from mwork_lens.detection import checking
from mwork_lens.detection.checking import require_exact

from ..faults import FAULTS, has
from ..tiny import FAMILIES, tiny

QUIET = {"progress": False}
CASES = [(name, family) for name, family in product(FAULTS, FAMILIES) if has(tiny(family), FAULTS[name].needs)]


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    monkeypatch.setattr(checking, "_verified", WeakKeyDictionary())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_fault_in_the_reading_of_a_layer_is_found(name, family, dtype, monkeypatch):
    FAULTS[name].plant(monkeypatch)
    sites = "|".join(FAULTS[name].sites)
    with pytest.raises(ValueError, match=rf"({sites}) neuron \d+ of layer 1 .*layers=\[0\] scores those"):
        require_exact(tiny(family, dtype), "stream", None, [0, 1], 4)


EXACT = [
    *product(FAMILIES, [torch.float32, torch.bfloat16], ["stream"]),
    *product(["gemma2", "gemma3", "olmo2"], [torch.float32], ["structure"]),
    *product(["gemma2", "gemma3", "olmo2"], [torch.float64], ["stream"]),
]


@pytest.mark.parametrize(("family", "dtype", "measure"), EXACT)
def test_no_neuron_of_an_exact_model_differs(family, dtype, measure):
    checks = mw.check_scores(tiny(family, dtype), measure=measure)
    wide = checks[checks.dtype != "bfloat16"]
    assert wide.relative.max() < 2e-5
    assert checks.exact.all()
    assert set(zip(checks.layer, checks.site, strict=True)) == set(product(range(2), ("q", "k", "v", "mlp")))
    assert (checks.dtype == "bfloat16").any() == (dtype == torch.bfloat16)
