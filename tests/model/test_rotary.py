"""Rotary embedding as it is measured."""

import copy

from mwork_lens.model.rotary import Rotary

from ..tiny import tiny


def test_a_layer_is_measured_where_it_is():
    """Where a model lies over several devices."""
    model = copy.deepcopy(tiny("llama"))
    model.blocks[1].to("meta")
    assert [Rotary(model, layer).pair.device.type for layer in range(2)] == ["cpu", "meta"]
