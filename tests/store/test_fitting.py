"""What the fields of a saved result may be: its hashes may be right and its content not."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mwork_lens.store import fits
from mwork_lens.store.result import _hashes

from ..saved.kinds import FOLDER, KINDS


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (int, [3, -(10**30)], [True, 3.0, "3", None]),
        (float, [3, math.nan, math.inf], [True, "3", [3.0]]),
        (str | None, ["a", None], [0, ["a"]]),
        (Literal["a", "b"], ["a"], ["c", 0, None, ["a"]]),
        (Sequence[str], [["a"], ("a",), []], ["a", [1], {"a": 1}]),
        (tuple[int, ...], [(1, 2), ()], [[1], (1, "2")]),
        (tuple[int, str], [(1, "a")], [(1,), (1, "a", 2), ("a", 1)]),
        (Mapping[str, Mapping[int, float]], [{"a": {1: 2.0}}, {}], [{"a": 2.0}, {"a": {"1": 2.0}}, {1: {}}]),
        (dict[str, Any], [{"a": object()}], [{1: 1}, []]),
        (Float[Tensor, "a b"], [torch.ones(2, 3)], [torch.ones(2), torch.ones(2, 3).int(), np.ones((2, 3)), [[1.0]]]),
        (Int[np.ndarray, "*any"], [np.ones((2, 3), int), np.ones((), int)], [np.ones(2), torch.ones(2).int()]),
    ],
)
def test_what_fits_an_annotation(annotation, right, wrong):
    assert all(fits(value, annotation) for value in right)
    assert not any(fits(value, annotation) for value in wrong)


REMOVED = object()
RANGE, TEXTS = {"$": "range", "of": [0, 10**18, 1]}, {"$": "texts", "of": ["a", "b"]}
FORGED = [
    ("activations", "values/fr/k", {"x": 1}),
    ("detection", "counts/fr/v", 1.5),
    ("detection", "counts/en/mlp", REMOVED),
    ("detection", "documents/en", REMOVED),
    ("effect_matrix", "nats/baseline", REMOVED),
    ("effect_matrix", "nats/fr/en", REMOVED),
    ("effect_matrix", "documents/fr/0", REMOVED),
    ("effect_matrix", "folds/fr/3", "x"),
    ("effect_matrix", "settings/sets/fr", [None]),
    ("effect_matrix", "settings/sets/fr/0/origin", REMOVED),
    ("effect_matrix", "settings/corpus/passages/fr", REMOVED),
    ("effect_matrix", "unit", "word"),
    ("effect_matrix", "utf8_bytes/ru", "/etc/passwd"),
    ("enhancement", "read/held-out/of/documents/en/0", REMOVED),
    ("generations", "rows/of/1/of/tokens/of/0", TEXTS),
    ("language_ratio", "layers/of/2", "0"),
    ("language_ratio", "documents/fr/0", REMOVED),
    ("language_ratio", "languages/of/0", "xx"),
    ("layer_sweep", "effects/of/languages/fr first 3", RANGE),
    ("lens_grid", "decoded/of/3/1", {"$": "float", "of": "nan"}),
    ("neuron_cards", "neurons/of/0", False),
    ("neuron_delta", "new/blocks.3.mlp.b_in", REMOVED),
    ("neuron_delta", "old/blocks.3.mlp.b_in", [1.0]),
    ("tuned", "steps", [0]),
    ("workflow", "evidence/of/0", True),
]


@pytest.mark.parametrize(("kind", "place", "value"), FORGED)
def test_other_content_with_right_hashes_is_refused(tmp_path, kind, place, value):
    path, cls = tmp_path / "forged", KINDS[kind][0]
    cls.load(FOLDER / kind).save(path)
    cfg = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
    node, steps = cfg["fields"], [int(step) if step.isdecimal() else step for step in place.split("/")]
    for step in steps[:-1]:
        node = node[step]
    assert node[steps[-1]] != value
    if value is REMOVED:
        del node[steps[-1]]
    else:
        node[steps[-1]] = value
    cfg["sha256"] = _hashes(cfg, path / "tensors.safetensors")
    (path / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")
    with pytest.raises(ValueError, match="does not hold a whole") as error:
        cls.load(path)
    assert str(path) in str(error.value)
