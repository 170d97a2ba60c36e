import pytest

import mwork_lens as mw
from mwork_lens.neurons.stages import ALL_PARTS, MWORK_PARTS, STAGES

from ..made_up import SPACE, members, neuron_set
from ..tiny import tiny

ALL = ~neuron_set([])
ATTENTION = {"q", "k", "v"}


def test_stages_are_the_models_layers():
    stages = mw.Stages(SPACE, understanding=1, generation=1)
    assert (stages.understanding, stages.task_solving, stages.generation) == (range(1), range(1, 2), range(2, 3))
    assert mw.Stages(SPACE) == stages
    assert repr(stages) == "Stages(made-up: understanding 0–0, task_solving 1–1, generation 2–2)"


def test_the_paper_shares_are_the_default():
    deep = mw.NeuronSpace(**{**vars(SPACE), "n_layers": 32})
    assert mw.Stages(deep) == mw.Stages(deep, understanding=8, generation=4)
    assert mw.Stages(deep).task_solving == range(8, 28)


@pytest.mark.parametrize("parts", [MWORK_PARTS, ALL_PARTS[3:], STAGES])
def test_parts_divide_a_set(parts):
    stages = mw.Stages(SPACE)
    divided = [members(stages.select(ALL, part)) for part in parts]
    assert set().union(*divided) == members(ALL)
    assert sum(map(len, divided)) == len(ALL)
    assert {name: members(part) for name, part in stages.split(ALL).items()} == {
        name: members(stages.select(ALL, name)) for name in MWORK_PARTS
    }


def test_any_combination_may_be_asked_for():
    french = neuron_set(members(ALL), language="fr", quorum=0.9)
    chosen = mw.Stages(SPACE).select(french, "understanding feed_forward", "task_solving attention", "generation")
    kept = {(0, "mlp"), *((1, site) for site in ATTENTION), *((2, site) for site in (*ATTENTION, "mlp"))}
    assert members(chosen) == {(layer, site, i) for layer, site, i in members(ALL) if (layer, site) in kept}
    assert chosen.origin["language"] == "fr"
    assert chosen.origin["parts"] == ["understanding feed_forward", "task_solving attention", "generation"]


def test_bad_stages_are_refused():
    with pytest.raises(ValueError, match=r"understanding=2 and generation=1 .* has 3 layers"):
        mw.Stages(SPACE, understanding=2, generation=1)
    with pytest.raises(ValueError, match="understanding=0"):
        mw.Stages(SPACE, understanding=0)
    with pytest.raises(ValueError, match="tiny-llama has 2 layers"):
        mw.Stages(tiny("llama"))
    with pytest.raises(ValueError, match="no part 'reasoning'; parts are "):
        mw.Stages(SPACE).select(ALL, "reasoning")
    other = mw.NeuronSpace(**{**vars(SPACE), "n_layers": 4})
    with pytest.raises(ValueError, match="with 3 layers; the set is of made-up with 4"):
        mw.Stages(SPACE).select(mw.NeuronSet.empty(other), "generation")
