import pytest

from mwork_lens.detection import importance
from mwork_lens.neurons import NeuronSpace

from .oracle import sequential
from .tiny import FAMILIES, tiny, tokens


@pytest.mark.parametrize("where", ["stream", "structure"])
@pytest.mark.parametrize("family", FAMILIES)
def test_closed_forms_equal_ablation(family, where):
    model, ids = tiny(family), tokens(12)
    scores = importance(model, ids, measure=where)
    space = NeuronSpace.of(model)
    for site, width in space.widths.items():
        if where == "structure" and site in "qk":
            continue
        for layer in range(space.n_layers):
            for neuron in range(0, width, 3):
                truth = sequential(model, ids, layer, site, neuron, where)
                assert scores[site][layer, neuron].item() == pytest.approx(truth, rel=1e-8, abs=1e-12)
