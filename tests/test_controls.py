import numpy as np
import pytest
import torch

from mwork_lens.controls import matched_control, random_control
from mwork_lens.detection import Detection
from mwork_lens.neurons import NeuronSet, NeuronSpace

SPACE = NeuronSpace(
    model="made-up",
    n_layers=2,
    d_model=8,
    n_heads=4,
    n_key_value_heads=2,
    d_head=16,
    d_mlp=60,
    processing="unprocessed",
)
DOCUMENTS = 10


def made_up_detection(seed=0, languages=("en", "fr")):
    """Log-normal mean scores over six orders of magnitude; each language has its own active eighth."""
    generator = torch.Generator().manual_seed(seed)

    def scores(width):
        return (3 * torch.randn(SPACE.n_layers, width, generator=generator, dtype=torch.float64)).exp()

    def no(width):
        return torch.zeros(SPACE.n_layers, width, dtype=torch.int32)

    def counts(width, turn):
        return torch.where(torch.arange(width) % 8 == turn, DOCUMENTS, no(width))

    return Detection(
        space=SPACE,
        counts={lang: {s: counts(w, i) for s, w in SPACE.widths.items()} for i, lang in enumerate(languages)},
        mean_scores={lang: {s: scores(w) for s, w in SPACE.widths.items()} for lang in languages},
        screened={lang: {s: no(w) for s, w in SPACE.widths.items()} for lang in languages},
        documents=dict.fromkeys(languages, DOCUMENTS),
        settings={"top": 0.2, "formulation": "exact", "measure": "stream", "corpus": {"hash": "0"}},
    )


DETECTION = made_up_detection()
FRENCH = DETECTION.specific("fr") - DETECTION.specific("fr").restrict(layers=[1], sites="v")
FRENCH = NeuronSet(SPACE, FRENCH.masks, DETECTION.specific("fr").origin)
"""Of uneven size: none in layer 1, site v."""


def random(seed=0):
    return random_control(FRENCH, seed=seed)


def matched(seed=0):
    return matched_control(FRENCH, DETECTION, seed=seed)


@pytest.mark.parametrize("make", [random, matched])
@pytest.mark.parametrize("seed", range(5))
def test_as_many_others_in_each_layer_and_site(make, seed):
    control = make(seed)
    assert len(FRENCH) > 0
    assert control.counts().equals(FRENCH.counts())
    assert len(control & FRENCH) == 0
    assert control.origin["language"] == "fr"
    assert control.origin["seed"] == seed


@pytest.mark.parametrize("make", [random, matched])
def test_the_seed_decides(make):
    assert make(3) == make(3)
    assert make(3) != make(4)


def test_random_controls_reach_every_other_neuron():
    reached = NeuronSet.empty(SPACE)
    for seed in range(60):
        reached = reached | random(seed)
    assert reached == ~FRENCH - (~FRENCH).restrict(layers=[1], sites="v")


def test_matched_controls_matter_as_much():
    """On average over seeds, each quantile of log mean score is nearer than a random control's."""

    def distance(control):
        gaps = [
            (np.sort(log[control.masks[site][layer]]) - np.sort(log[FRENCH.masks[site][layer]]))
            for site, scores in DETECTION.mean_scores["fr"].items()
            for layer, log in enumerate(scores.log().numpy())
        ]
        return np.abs(np.concatenate(gaps)).mean()

    near, far = (np.mean([distance(make(seed)) for seed in range(5)]) for make in (matched, random))
    assert near < far / 3


def test_matched_controls_follow_the_language_that_is_asked_for():
    with_english = matched_control(FRENCH, DETECTION, language="en")
    assert with_english.origin["language"] == "en"
    assert with_english != matched()


def test_matched_controls_avoid_specific_neurons_where_they_can():
    specific = DETECTION.specific("en") | DETECTION.specific("fr")
    assert len(matched() & specific) == 0
    # over half of layer 0, site q: 31 others are left of 64, of which 7 are English
    wide = FRENCH | NeuronSet.from_list(SPACE, [(0, "q", i) for i in range(28)])
    assert len(matched_control(wide, DETECTION, language="fr")) == len(wide)


@pytest.mark.parametrize("control", [random_control, lambda s: matched_control(s, DETECTION, language="fr")])
def test_too_few_other_neurons(control):
    half = NeuronSet.from_list(SPACE, [(1, "k", i) for i in range(16)])
    assert len(control(half)) == 16
    more = half | NeuronSet.from_list(SPACE, [(1, "k", 20)])
    with pytest.raises(ValueError, match="Layer 1 has 15 other k neurons, too few for a control of 17"):
        control(more)


def test_a_set_without_a_language_needs_one():
    neurons = NeuronSet(SPACE, FRENCH.masks)
    with pytest.raises(ValueError, match="language="):
        matched_control(neurons, DETECTION)
    with pytest.raises(ValueError, match="'th'; there are en, fr"):
        matched_control(neurons, DETECTION, language="th")
