import numpy as np
import pytest

from mwork_lens.detection.controls import (
    all_controls,
    cut_to_equal,
    matched_control,
    other_control,
    random_control,
    shared_control,
    top_control,
)
from mwork_lens.neurons.sets import NeuronSet

from ..made_up import DETECTED_SPACE, DETECTION, DOCUMENTS, FRENCH, made_up_detection

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
    reached = NeuronSet.empty(DETECTED_SPACE)
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
    wide = FRENCH | NeuronSet.from_list(DETECTED_SPACE, [(0, "q", i) for i in range(28)])
    with pytest.warns(UserWarning, match="4 of 68 matched neurons are specific"):
        control = matched_control(wide, DETECTION, language="fr")
    assert len(control) == len(wide)
    assert control.origin["from_specific"] == 4


@pytest.mark.filterwarnings("ignore:.*matched neurons are specific")
@pytest.mark.parametrize("control", [random_control, lambda s: matched_control(s, DETECTION, language="fr")])
def test_too_few_other_neurons(control):
    half = NeuronSet.from_list(DETECTED_SPACE, [(1, "k", i) for i in range(16)])
    assert len(control(half)) == 16
    more = half | NeuronSet.from_list(DETECTED_SPACE, [(1, "k", 20)])
    with pytest.raises(ValueError, match="Layer 1 has 15 other k neurons, too few for a control of 17"):
        control(more)


def test_a_set_without_a_language_needs_one():
    neurons = NeuronSet(DETECTED_SPACE, FRENCH.masks)
    with pytest.raises(ValueError, match="language="):
        matched_control(neurons, DETECTION)
    with pytest.raises(ValueError, match="'th'; there are en, fr"):
        matched_control(neurons, DETECTION, language="th")


def everybody(counted=DOCUMENTS):
    """As DETECTION, with Chinese, and every third neuron active in all languages (on ``counted`` documents)."""
    detection = made_up_detection(languages=("en", "fr", "zh"))
    for by_site in detection.counts.values():
        for counts in by_site.values():
            counts[:, ::3] = counted
    return detection


def test_the_gap_of_matched_scores_is_recorded():
    control = matched()
    scores = DETECTION.mean_scores["fr"]
    logs = [sum(scores[s][mask].log().sum() for s, mask in n.masks.items()) / len(n) for n in (control, FRENCH)]
    assert control.origin["log_score_gap"] == pytest.approx(float(logs[0] - logs[1]))


def test_shared_controls_are_active_everywhere_at_the_sets_own_quorum():
    detection = everybody(8)
    strict = detection.specific("fr", quorum=0.9)
    with pytest.warns(UserWarning, match=f"lacks {len(strict)} of {len(strict)}"):
        assert len(shared_control(strict, detection)) == 0
    french = detection.specific("fr", quorum=0.8)
    control = shared_control(french, detection, seed=1)
    assert control.counts().equals(french.counts())
    for language in detection.languages:
        assert control - detection.active(language, quorum=0.8) == NeuronSet.empty(DETECTED_SPACE)
    assert control != shared_control(french, detection, seed=2)


def test_top_controls_are_among_twice_as_many_english_ones():
    control, scores = top_control(FRENCH, DETECTION, seed=3), DETECTION.mean_scores["en"]
    assert control.counts().equals(FRENCH.counts())
    assert len(control & FRENCH) == 0
    for site, mask in control.masks.items():
        for layer, row in enumerate(mask):
            own, needed = FRENCH.masks[site][layer], int(FRENCH.masks[site][layer].sum())
            better = [int((scores[site][layer][~own] > score).sum()) for score in scores[site][layer][row]]
            assert all(rank < 2 * needed for rank in better)


def test_another_languages_set_is_cut():
    detection = made_up_detection(languages=("en", "fr", "zh"))
    french = FRENCH.restrict(layers=[0])
    control = other_control(french, detection.specific("zh"))
    assert control.counts().equals(french.counts())
    assert control - detection.specific("zh") == NeuronSet.empty(DETECTED_SPACE)
    with pytest.warns(UserWarning, match="'specific zh' lacks"):
        other_control(french, detection.specific("zh").restrict(sites=["q"]))


def test_sets_cut_to_equal_differ_in_nothing_but_their_neurons():
    wide = DETECTION.specific("en") | DETECTION.specific("fr")
    cut = cut_to_equal({"a": wide, "fr": FRENCH}, seed=4)
    assert cut["a"].counts().equals(FRENCH.counts())
    assert cut["fr"] == FRENCH
    assert cut["a"] - wide == NeuronSet.empty(DETECTED_SPACE)
    assert cut["a"] != cut_to_equal({"a": wide, "fr": FRENCH}, seed=5)["a"]


def test_all_controls_together():
    detection = everybody()
    french = detection.specific("fr")
    controls = all_controls(french, detection, seed=2)
    assert list(controls) == ["random", "matched", "shared", "top en", "specific zh"]
    for name, control in controls.items():
        assert control.counts().equals(french.counts()), name
        assert len(control & french) == 0
        assert control.origin["language"] == "fr"
        assert control.origin["seed"] == 2
