from functools import reduce
from itertools import permutations
from operator import or_

import pytest
import torch

import mwork_lens as mw
from mwork_lens.detection import Detection

from ..made_up import DETECTED_SPACE, DOCUMENTS

LANGUAGES = ["en", "fr", "ru", "th", "zh", "sw", "fi", "tr"]


def detection(languages=LANGUAGES):
    """Counts of every size, so that quorums cut them everywhere."""
    generator = torch.Generator().manual_seed(0)

    def numbers(width):
        return torch.randint(0, DOCUMENTS + 1, (DETECTED_SPACE.n_layers, width), generator=generator).int()

    counts = {name: {site: numbers(width) for site, width in DETECTED_SPACE.widths.items()} for name in languages}
    return Detection(
        space=DETECTED_SPACE,
        counts=counts,
        mean_scores={name: {site: each.double() + 1 for site, each in of.items()} for name, of in counts.items()},
        screened=counts,
        documents=dict.fromkeys(languages, DOCUMENTS),
        settings={"top": 0.2, "formulation": "exact", "measure": "stream", "corpus": {"hash": "0"}},
    )


@pytest.mark.parametrize(("quorum", "against"), [(0.5, 0.5), (0.8, 0.3), (0.3, 0.8), (1.0, 0.9), (0.9, 1.0)])
def test_specific_sets_are_those_of_the_definition(quorum, against):
    of, pairs = detection(), {"quorum": quorum, "against_quorum": against}
    theirs = {name: of.active(name, quorum=against) for name in LANGUAGES}
    everywhere = reduce(lambda a, b: a & b, theirs.values())
    for name in LANGUAGES:
        own, others = of.active(name, quorum=quorum), reduce(or_, [theirs[n] for n in LANGUAGES if n != name])
        assert of.specific(name, **pairs) == own - others
        assert of.specific(name, against="shared", **pairs) == own - everywhere
        assert (
            of.specific(name, against=["en" if name != "en" else "fr"], **pairs)
            == own - theirs["en" if name != "en" else "fr"]
        )


@pytest.mark.parametrize(("quorum", "against"), [(0.6, None), (0.8, 0.3), (0.3, 0.8)])
def test_matched_neurons_are_not_specific_to_any_language(quorum, against):
    of = detection(LANGUAGES[:4])
    sets = [of.specific(name, quorum=quorum, against_quorum=against) for name in of.languages]
    few = mw.NeuronSet(of.space, mw.cut_to_size(sets[0], 2).masks, sets[0].origin)
    control = mw.matched_control(few, of)
    assert len(control) == 2
    assert not len(control & reduce(or_, sets))


def test_all_sets_together_look_at_each_language_a_fixed_number_of_times(monkeypatch):
    looked, of = [], detection()
    masks = Detection._active_masks
    monkeypatch.setattr(Detection, "_active_masks", lambda *each: looked.append(each[1]) or masks(*each))
    sets = {name: of.specific(name, quorum=0.5) for name in LANGUAGES}
    for neurons in sets.values():
        mw.matched_control(neurons.restrict(layers=[0], sites=["q"]), of)
    assert max(map(looked.count, LANGUAGES)) <= 3


def test_overlap_counts_common_neurons():
    of = detection()
    table = mw.overlap(of, quorum=0.5, structure="attention").set_index(["language", "other"])
    active = {name: of.active(name, quorum=0.5).restrict(sites=["q", "k", "v"]) for name in LANGUAGES}
    for a, b in permutations(LANGUAGES, 2):
        assert table.loc[(a, b), "common"] == len(active[a] & active[b])
        assert table.loc[(a, b), "jaccard"] == len(active[a] & active[b]) / len(active[a] | active[b])
        assert (table.loc[(a, b), "neurons"], table.loc[(a, b), "other_neurons"]) == (len(active[a]), len(active[b]))
