"""A layer sweep and a stage grid of a tiny model."""

import pytest

import mwork_lens as mw
from mwork_lens.neurons import NeuronSpace

from ..tiny import tiny, tokens

CORPUS = {
    language: [tokens(length, seed + 10 * i) for seed, length in enumerate((9, 14, 6, 11, 8, 7))]
    for i, language in enumerate(("en", "fr", "ru"))
}
STAGES = {"understanding": 1, "generation": 2}


@pytest.fixture(scope="module")
def model():
    """Five layers, so that stages have neurons to lose."""
    return tiny("llama", n_layers=5)


@pytest.fixture(scope="module")
def sets(model):
    space = NeuronSpace.of(model)
    return {
        language: mw.NeuronSet.from_list(
            space, [(layer, "mlp", 3 * i + j) for layer in range(5) for j in range(1 + layer % 2)] + [(2, "q", i)]
        )
        for i, language in enumerate(("fr", "ru"))
    }


@pytest.fixture(scope="module")
def grid(model, sets):
    return mw.stage_grid(model, sets, CORPUS, mw.Stages(model, **STAGES), draws=2, progress=False)


@pytest.fixture(scope="module")
def sweep(model, sets):
    return mw.layer_sweep(model, sets, CORPUS, progress=False)
