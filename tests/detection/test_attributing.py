"""The derivative of the loss in the factor of ``mode="scale"`` is minus the attribution, in every family."""

import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy

import mwork_lens as mw
from mwork_lens.model.budget import Budget
from mwork_lens.model.sites import SITES
from mwork_lens.store import digest

from ..decoders import DECODERS, decoder_model
from ..decoders.row import GENERATION
from ..tiny import FAMILIES, HOOKED, installed, tiny, tokens

CORPUS = {
    "fr": [tokens(length, seed) for seed, length in enumerate((9, 4, 12))],
    "zh": [tokens(length, seed + 50) for seed, length in enumerate((7, 11))],
}
QUIET = {"progress": False}
hooked_only = pytest.mark.skipif(not HOOKED, reason="TransformerLens 4 has no HookedTransformer")


def derivatives(model, ids):
    """Of the summed loss in a factor of each neuron and head, by the model's own logits."""
    points = {**{site: SITES[site].hook for site in SITES}, "head": "attn.hook_z"}
    factors, hooks = {}, []
    for site, point in points.items():
        for layer in range(model.cfg.n_layers):

            def times(activation, hook, place=(site, layer)):
                shape = activation.shape[2:-1] if place[0] == "head" else activation.shape[2:]
                factors[place] = torch.ones(shape, dtype=activation.dtype, requires_grad=True)
                return activation * (factors[place][..., None] if place[0] == "head" else factors[place])

            hooks.append((f"blocks.{layer}.{point}", times))
    logits = model.run_with_hooks(ids[None], fwd_hooks=hooks)[0]
    loss = cross_entropy(logits[:-1], ids[1:], reduction="sum")
    gradients = torch.autograd.grad(loss, list(factors.values()))
    return {place: each.flatten() for place, each in zip(factors, gradients, strict=True)}


@hooked_only
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_minus_the_derivative_in_the_factor_of_scale(family):
    model = tiny(family)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    effects = mw.attribution(model, CORPUS, batch_size=2, **QUIET)
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert installed(model) == {}
    for language, texts in CORPUS.items():
        of = [derivatives(model, ids) for ids in texts]
        for site, layer in of[0]:
            truth = -torch.stack([each[site, layer] / (len(ids) - 1) for each, ids in zip(of, texts, strict=True)])
            own = effects.head_effects[language] if site == "head" else effects.mean_effects[language][site]
            torch.testing.assert_close(own[layer], truth.mean(0), rtol=1e-6, atol=1e-9)
            assert truth.abs().max() > 1e-4


@hooked_only
def test_it_is_what_scale_itself_does_to_the_loss():
    model, step = tiny("gemma3"), 1e-4
    effects = mw.attribution(model, {"fr": CORPUS["fr"][:1]}, **QUIET).mean_effects["fr"]
    for layer, site, neuron in [(0, "q", 3), (1, "k", 7), (0, "v", 2), (1, "mlp", 11)]:
        one, nats = mw.NeuronSet.from_list(mw.NeuronSpace.of(model), [(layer, site, neuron)]), []
        for factor in (1 - step, 1 + step):
            with mw.ablate(model, one, "scale", factor=factor):
                nats.append(mw.language_losses(model, {"fr": CORPUS["fr"][:1]}).nats_per_token.iloc[0])
        assert (nats[0] - nats[1]) / (2 * step) == pytest.approx(effects[site][layer, neuron].item(), abs=1e-7)


@pytest.mark.parametrize("name", ["Gemma4ForCausalLM", "StableLmForCausalLM", "BloomForCausalLM-stream normed"])
def test_it_is_that_on_a_bridge_too(name):
    """In float64 norms and softmax are in float32 there."""
    row = next(row for row in DECODERS if str(row) == name and GENERATION in row.generations)
    model, texts = decoder_model(row), {"fr": [CORPUS["fr"][0]]}
    effects = mw.attribution(model, texts, **QUIET)
    for (site, layer), gradient in derivatives(model, texts["fr"][0]).items():
        own = effects.head_effects["fr"] if site == "head" else effects.mean_effects["fr"][site]
        torch.testing.assert_close(own[layer], -gradient / (len(texts["fr"][0]) - 1), rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def whole():
    return mw.attribution(tiny("llama"), CORPUS, batch_size=1, **QUIET)


def test_parts_make_the_whole_and_a_stopped_run_goes_on(whole, tmp_path):
    parts = [mw.attribution(tiny("llama"), CORPUS, batch_size=1, shard=(i, 2), **QUIET) for i in (1, 0)]
    parts[0].save(tmp_path / "part")
    merged = mw.Attribution.merge([mw.Attribution.load(tmp_path / "part"), parts[1]])
    assert digest([merged.sums, merged.documents, merged.settings]) == digest(
        [whole.sums, whole.documents, whole.settings]
    )
    with pytest.raises(ValueError, match="merge all parts first"):
        parts[0].specific("fr")
    again = [mw.attribution(tiny("llama"), CORPUS, batch_size=1, checkpoint=tmp_path / "run", **QUIET) for _ in "ab"]
    assert digest(again[0]) == digest(again[1]) == digest(whole)


def test_a_languages_own_have_the_largest_rise_beyond_the_others(whole):
    own = whole.specific("fr", size=10, sites=["v", "mlp"])
    assert (len(own), own.origin.kind, own.origin["sites"]) == (10, "attribution", ["v", "mlp"])
    beyond = {site: whole.mean_effects["fr"][site] - whole.mean_effects["zh"][site] for site in ("v", "mlp")}
    inside = min(beyond[site][own.masks[site]].min() for site in beyond if own.masks[site].any())
    outside = max(beyond[site][~own.masks[site]].max() for site in beyond)
    assert inside >= outside
    with pytest.raises(ValueError, match="'th' is compared with other languages; there are fr, zh"):
        whole.specific("th")


def test_absolute_effects_do_not_cancel(whole):
    absolute = mw.attribution(tiny("llama"), CORPUS, batch_size=1, statistic="absolute", **QUIET)
    for site, values in absolute.mean_effects["fr"].items():
        assert (values >= whole.mean_effects["fr"][site].abs() - 1e-12).all()
        assert (values > whole.mean_effects["fr"][site].abs() + 1e-6).any()


def test_documents_without_a_loss_do_not_count():
    model = tiny("llama")
    with_one = mw.attribution(model, {"fr": [*CORPUS["fr"], tokens(1)]}, batch_size=1, **QUIET)
    assert with_one.documents == {"fr": 3}
    with pytest.raises(ValueError, match="No token of 'fr' has a loss"):
        mw.attribution(model, {"fr": [tokens(1)]}, **QUIET)


def test_batches_hold_what_all_layers_compute():
    one, many = (Budget.of_all_layers(tiny("llama", n_layers=n)) for n in (1, 3))
    assert (many.by_token, many.by_pair) == (3 * one.by_token, 3 * one.by_pair)
    assert many.tokens == Budget.of(tiny("llama")).tokens
    assert many.memory is not None


@hooked_only
def test_modes_of_the_process_change_nothing(whole):
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert digest(mw.attribution(tiny("llama"), CORPUS, batch_size=1, **QUIET)) == digest(whole)
    from transformer_lens import HookedTransformer

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = HookedTransformer(tiny("llama").cfg)
    with pytest.raises(ValueError, match="was made in inference mode"):
        mw.attribution(made, CORPUS, **QUIET)
