"""A site is one row of the table, a detector one measure: nothing else is written for them."""

import pytest
import torch

import mwork_lens as mw
from mwork_lens.measures import LayerMeasure
from mwork_lens.model import SITES, Site, Slices, add_site, remove_site

from ..tiny import tiny, tokens

CORPUS = {"en": [tokens(9, 1), tokens(12, 2)], "fr": [tokens(7, 3), tokens(11, 4)]}
ROWS = (Slices("attn.W_O", "head index 1"),)
MIXED = Site("z", "attention", "attn.hook_z", "query", silencing=ROWS, tuning=ROWS, writes=True)


@pytest.fixture
def site():
    add_site(MIXED)
    yield MIXED
    remove_site("z")


def mean_absolute(model, layer):
    """How large a mixed value is on average."""

    def score(seen, batch):
        content = batch.content[..., None]
        return {"z": (seen[MIXED.hook].flatten(2).abs() * content).sum(1) / content.sum(1)}

    return [LayerMeasure((MIXED.hook,), score)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.usefixtures("site")
def test_a_row_and_a_measure_are_all_a_new_site_needs(tmp_path, family):
    model = tiny(family)
    detection = mw.detect(model, CORPUS, top=0.25, formulation=mean_absolute, progress=False)
    neurons = detection.active("fr", quorum=1.0)
    assert detection.counts["fr"]["z"].shape == (2, 32)
    assert set(neurons.counts().columns[neurons.counts().sum() > 0]) <= {"z", "total"}
    assert len(neurons.restrict(sites=["z"])) == len(neurons) > 0

    _, cache = model.run_with_cache(CORPUS["fr"][0][None])
    truth = cache["blocks.1.attn.hook_z"][0].flatten(1).abs().mean(0)
    scores = mw.importance(model, CORPUS["fr"][0], formulation=mean_absolute)
    torch.testing.assert_close(scores["z"][1], truth)

    detection.save(tmp_path / "detection")
    neurons.save(tmp_path / "set")
    again = mw.NeuronSet.load(tmp_path / "set")
    assert again == neurons
    assert torch.equal(mw.Detection.load(tmp_path / "detection").counts["en"]["z"], detection.counts["en"]["z"])

    ids = CORPUS["fr"][0][None]
    with mw.ablate(model, again):
        off = model(ids)
    assert not torch.equal(off, model(ids))
    with mw.edit_weights(model, again):
        torch.testing.assert_close(model(ids), off)


def test_what_was_saved_without_a_site_has_no_neurons_there(tmp_path):
    model = tiny("llama")
    old = mw.detect(model, CORPUS, top=0.25, progress=False)
    neurons = old.active("en", quorum=0.5)
    old.save(tmp_path / "detection")
    neurons.save(tmp_path / "set")
    add_site(MIXED)
    try:
        loaded = mw.NeuronSet.load(tmp_path / "set")
        assert not loaded.masks["z"].any()
        assert all(torch.equal(loaded.masks[name], mask) for name, mask in neurons.masks.items())
        again = mw.Detection.load(tmp_path / "detection").active("en", quorum=0.5)
        assert len(again) == len(neurons)
        assert len(loaded.hooks()) == len(neurons.hooks())
    finally:
        remove_site("z")


@pytest.mark.usefixtures("site")
def test_a_name_is_added_once():
    with pytest.raises(ValueError, match="'z' already"):
        add_site(MIXED)
    assert list(SITES) == ["q", "k", "v", "mlp", "z"]
