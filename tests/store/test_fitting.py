"""What the fields of a saved result may be: its hashes may be right and its content not."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mwork_lens.store import fits, require_record
from mwork_lens.store.result import _hashes

from ..saved.kinds import FOLDER, KINDS


class Entry(TypedDict):
    a: int
    b: NotRequired[str]


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
        (Sequence[Entry], [[{"a": 1}], [{"a": 1, "b": "x", "c": None}], []], [[{}], [{"a": 1, "b": 2}], {"a": 1}, [1]]),
    ],
)
def test_what_fits_an_annotation(annotation, right, wrong):
    assert all(fits(value, annotation) for value in right)
    assert not any(fits(value, annotation) for value in wrong)


def test_what_a_record_lacks_is_named():
    require_record({"a": 1, "more": []}, Entry, "the settings")
    with pytest.raises(ValueError, match="'a' of the settings is missing"):
        require_record({"b": "x"}, Entry, "the settings")
    with pytest.raises(ValueError, match="'b' of the settings cannot be 3"):
        require_record({"a": 1, "b": 3}, Entry, "the settings")


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
    ("neuron_delta", "origin/set", "x"),
    ("neuron_delta", "new/blocks.3.mlp.b_in", REMOVED),
    ("neuron_delta", "old/blocks.3.mlp.b_in", [1.0]),
    ("tuned", "steps", [0]),
    ("workflow", "evidence/of/0", True),
    ("detection", "settings/corpus/hash", REMOVED),
    ("detection", "settings/layers", [99]),
    ("effect_matrix", "settings/model", None),
    ("effect_matrix", "settings/sets/fr/0/neurons", "x"),
    ("effect_matrix", "settings/sets/fr", []),
    ("enhancement", "results/0/of/run/of/language", "xx"),
    ("enhancement", "results/0/of/run/of/arm", "xx"),
    ("enhancement", "results/0/of/run", None),
    ("enhancement", "results/0/of/metadata/neurons", REMOVED),
    ("enhancement", "results/1/of/nats/held-out/ru", REMOVED),
    ("enhancement", "settings/design/rates", None),
    ("enhancement", "settings/own_rates/fr", {}),
    ("enhancement", "settings/trials", [{"language": "fr", "rate": 0.1}]),
    ("generations", "settings/languages", REMOVED),
    ("steering", "generations/of/settings/languages", 3),
    ("identifier_accuracy", "settings", {"x": 1}),
    ("identifier_accuracy", "languages/of/0", REMOVED),
    ("language_ratio", "settings/n_layers", "5"),
    ("language_ratio", "settings/corpus/parallel", REMOVED),
    ("language_ratio", "settings/by", REMOVED),
    ("latent_languages", "settings", {"x": 1}),
    ("latent_languages", "languages/of/0", REMOVED),
    ("layer_sweep", "effects/of/settings/sets/fr last 2/0/origin/layers", 7),
    ("lens_grid", "decoded/of/0", REMOVED),
    ("lens_grid", "vocabulary", {}),
    ("lens_grid", "tokens/of/0", REMOVED),
    ("neuron_cards", "contexts/of/0/of/1", {"x": 1}),
    ("neuron_cards", "contexts/of/1/of/0/language", 3),
    ("neuron_cards", "neurons/of/0/of/1", "nowhere"),
    ("neuron_cards", "tokens", {}),
    ("neuron_cards", "vocabulary", {}),
    ("stage_grid", "effects/of/settings/stages", REMOVED),
    ("stage_grid", "effects/of/settings/stages/languages", 3),
    ("stage_grid", "effects/of/settings/stages/generation", [0, 1, 2, 3]),
    ("tuned", "settings/kept_step", REMOVED),
    ("tuned", "settings/recipe/learning_rate", "x"),
    ("workflow", "layers/task_solving", REMOVED),
]


@pytest.mark.parametrize(("kind", "place", "value"), FORGED)
def test_other_content_with_right_hashes_is_refused(tmp_path, kind, place, value):
    path, cls = tmp_path / "forged", KINDS[kind][0]
    cls.load(FOLDER / kind).save(path)
    cfg = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
    node, steps = cfg["fields"], [int(step) if step.isdecimal() else step for step in place.split("/")]
    for step in steps[:-1]:
        node = node[step]
    assert isinstance(node, list) or node.get(steps[-1]) != value
    if value is REMOVED:
        del node[steps[-1]]
    else:
        node[steps[-1]] = value
    cfg["sha256"] = _hashes(cfg, path / "tensors.safetensors")
    (path / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")
    with pytest.raises(ValueError, match="does not hold a whole") as error:
        cls.load(path)
    assert str(path) in str(error.value)
