"""One neuron off at a time: copies of a document give what whole passes with that neuron off give."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import mwork_lens as mw
from mwork_lens.effects.ranking import spearman
from mwork_lens.model.sites import SITES
from mwork_lens.store import digest

from ..decoders import DECODERS, decoder_model
from ..decoders.row import GENERATION
from ..tiny import FAMILIES, HOOKED, installed, tiny, tokens

CORPUS = {"fr": [tokens(length, seed) for seed, length in enumerate((9, 4))], "zh": [tokens(12, 50)]}
QUIET = {"progress": False}
hooked_only = pytest.mark.skipif(not HOOKED, reason="TransformerLens 4 has no HookedTransformer")


@torch.inference_mode()
def rise(model, texts, layer, site, neuron):
    """One neuron, one document and one whole pass at a time, by the model's own logits."""

    def zero(activation, hook):
        flat = activation.flatten(2).clone()
        flat[..., neuron] = 0
        return flat.view(activation.shape)

    def loss(ids, hooks):
        logits = model.run_with_hooks(ids[None], fwd_hooks=hooks)[0]
        return cross_entropy(logits[:-1], ids[1:], reduction="sum").item()

    off, none = ([(SITES[site].hook_name(layer), zero)], [])
    return sum(loss(ids, off) - loss(ids, none) for ids in texts) / sum(len(ids) - 1 for ids in texts)


def largest_error(model, neurons, corpus=CORPUS, **options):
    frame = mw.single_effects(model, neurons, corpus, **options, **QUIET).to_frame()
    truth = [rise(model, corpus[row.language], row.layer, row.site, row.neuron) for row in frame.itertuples()]
    assert installed(model) == {}
    assert frame.rise.abs().min() > 1e-8
    return (frame.rise - truth).abs().max()


@hooked_only
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_ablation_one_by_one(family):
    model = tiny(family)
    assert largest_error(model, mw.sample_neurons(model, per_cell=2, by_third=False), batch_size=3) < 1e-9


@pytest.mark.parametrize("name", ["Gemma3ForCausalLM", "GPTNeoXForCausalLM", "BloomForCausalLM-stream normed"])
def test_it_is_that_on_a_bridge_too(name):
    """In float64 norms and softmax are in float32 there."""
    row = next(row for row in DECODERS if str(row) == name and GENERATION in row.generations)
    model = decoder_model(row)
    assert largest_error(model, mw.sample_neurons(model, per_cell=2, by_third=False), {"fr": CORPUS["fr"]}) < 1e-5


@hooked_only
def test_a_model_that_does_more_between_its_blocks_is_refused():
    model, before = tiny("llama"), []
    sample = mw.sample_neurons(model, per_cell=1, by_third=False)

    def remember(module, args):
        before.append(args[0].mean(-1, keepdim=True))

    def add(module, args):
        return (args[0] + before[-1][: len(args[0])],) if before[-1].shape[1] == args[0].shape[1] else None

    handles = [model.embed.register_forward_pre_hook(lambda *_: before.clear())]
    handles += [model.blocks[0].register_forward_pre_hook(remember), model.blocks[1].register_forward_pre_hook(add)]
    try:
        with pytest.raises(ValueError, match=r"q neuron \d+ of layer \d off, running only the blocks from there on"):
            mw.single_effects(model, sample, CORPUS, **QUIET)
    finally:
        for handle in handles:
            handle.remove()
    with pytest.raises(ValueError, match="neurons is empty"):
        mw.single_effects(model, sample - sample, CORPUS, **QUIET)


@hooked_only
def test_parts_make_the_whole_and_a_stopped_run_goes_on(tmp_path):
    model = tiny("llama")
    sample = mw.sample_neurons(model, per_cell=2, by_third=False)
    whole = mw.single_effects(model, sample, CORPUS, **QUIET)
    parts = [mw.single_effects(model, sample, CORPUS, shard=(i, 2), **QUIET) for i in (1, 0)]
    parts[0].save(tmp_path / "part")
    merged = mw.SingleEffects.merge([mw.SingleEffects.load(tmp_path / "part"), parts[1]])
    assert digest(merged) == digest(whole)
    again = [mw.single_effects(model, sample, CORPUS, checkpoint=tmp_path / "run", **QUIET) for _ in "ab"]
    assert digest(again[0]) == digest(again[1]) == digest(whole)


@hooked_only
def test_detectors_are_ranked_by_what_was_measured():
    model = tiny("llama", n_layers=3)
    truth = mw.single_effects(model, mw.sample_neurons(model, per_cell=5), CORPUS, **QUIET)
    exact = {site: torch.full((3, width), torch.nan) for site, width in truth.space.widths.items()}
    for (layer, site, neuron), value in zip(truth.places, truth.rises["fr"].value, strict=True):
        exact[site][layer, neuron] = value
    scores = {"exact": {"fr": exact}, "opposite": {"fr": {site: -each for site, each in exact.items()}}}
    table = truth.rank_correlations(scores).set_index("detector")
    assert len(table) == 2 * 4 * 3
    assert (table.neurons == 5).all()
    assert table.rise.loc["exact"].to_numpy() == pytest.approx(1)
    assert table.rise.loc["opposite"].to_numpy() == pytest.approx(-1)
    assert table.chance.to_numpy() == pytest.approx(0.98)
    with pytest.raises(ValueError, match="wrong: scores of q have shape"):
        truth.rank_correlations({"wrong": {"fr": {"q": exact["k"]}}})


def test_ranks_of_ties_are_their_mean():
    from scipy.stats import spearmanr

    numbers = torch.randint(0, 5, (2, 30), generator=torch.Generator().manual_seed(0)).double().numpy()
    assert spearman(*numbers) == pytest.approx(spearmanr(*numbers).statistic)
    assert spearman(numbers[0], 0 * numbers[1]) != spearman(numbers[0], 0 * numbers[1])  # NaN


def test_a_sample_has_as_many_of_each_site_in_every_third():
    model = decoder_model(next(row for row in DECODERS if str(row) == "LlamaForCausalLM"))
    per_layer = mw.sample_neurons(model, per_cell=4, by_third=False)
    assert (per_layer.counts().sum() == 4).all()
    assert per_layer == mw.sample_neurons(model, per_cell=4, by_third=False)
    assert per_layer != mw.sample_neurons(model, per_cell=4, by_third=False, seed=1)
    with pytest.raises(ValueError, match=r"per_cell=4000: .* has"):
        mw.sample_neurons(model, per_cell=4000)
