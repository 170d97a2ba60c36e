"""Every registered decoder: its scores equal ablation through hooks, or it is refused with its reason."""

import inspect
import re
import warnings
from itertools import product

import pytest
import torch
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

import mwork_lens as mw
from mwork_lens.detection import importance
from mwork_lens.model import all_logits, boundaries, hooked, run_blocks
from mwork_lens.model.blocks import layers_apart
from mwork_lens.model.decoding import decoder
from mwork_lens.model.post_norms import stream_after, stream_before
from mwork_lens.model.sites import SITES
from mwork_lens.neurons import NeuronSpace

from .decoders import DECODERS, OTHERS, decoder_model, document, reference_logits
from .decoders.a_to_gr import SAME
from .decoders.row import GENERATION
from .decoders.table import PAGE, page
from .tiny import some_neurons

# transformers computes norms and rotary tables in float32, whatever the model's type
ABLATION = {torch.float64: {"rtol": 1e-5, "atol": 1e-9}, torch.float32: {"rtol": 1e-3, "atol": 1e-6}}
BATCHES = {torch.float64: {"rtol": 1e-6, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-6}}
LOGITS = {torch.float64: 1e-6, torch.float32: 1e-5}
ROWS = [row for row in DECODERS if row.can_be_built and GENERATION in row.generations]


EXACT, REFUSED = ([row for row in ROWS if bool(row.refused) == refused] for refused in (False, True))


@pytest.fixture(scope="module", params=EXACT, ids=str)
def row(request):
    """Tests of one row run one after another."""
    return request.param


@pytest.fixture(scope="module")
def model(row):
    return decoder_model(row)


def test_every_registered_architecture_has_a_row_or_is_no_decoder():
    registered, with_row = set(SUPPORTED_ARCHITECTURES), {row.architecture for row in DECODERS}
    try:
        from transformer_lens.loading_from_pretrained import convert_hf_model_config
    except ImportError:
        assert GENERATION != "3.9"
    else:
        source = inspect.getsource(convert_hf_model_config)
        registered |= set(re.findall(r'architecture == "(\w+)"', source))
    assert registered <= with_row | set(OTHERS)
    assert not with_row & set(OTHERS)


def test_the_page_of_decoders_is_that_of_the_rows():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.decoders --write"


def ablated(model, ids, layer, site):
    """Scores of all neurons of a layer by the sequential method: each is zeroed in a copy of the document of its own.

    For q and k the change of the pattern; for v and mlp that of the residual stream, after the attention if there is
    a place, else after the block.
    """
    width, point = NeuronSpace.of(model).widths[site], SITES[site].hook_name(layer)
    output = stream_after(model, layer) if SITES[site].writes else f"blocks.{layer}.attn.hook_pattern"
    if site == "v" and f"blocks.{layer}.hook_resid_mid" in model.hook_dict:
        output = stream_before(model, layer, "feed_forward")
    seen = []

    def zero(activation, hook=None):
        flat = activation.flatten(2).clone()
        flat[range(width), :, range(width)] = 0
        return flat.view(activation.shape)

    keep = (output, lambda activation, hook=None: seen.append(activation.clone()))
    with torch.inference_mode(), hooked(model, [(point, zero), keep]):
        run_blocks(model, ids.expand(width + 1, -1))  # the last copy is left as it is
    change = seen[0][:-1] - seen[0][-1]
    return (change.flatten(1).square().sum(-1) / len(ids)).sqrt()


def test_scores_equal_ablation_of_every_neuron(row, model):
    ids = document(row)
    assert row.length > max((edge for edge in boundaries(model) if edge < model.cfg.n_ctx), default=0)
    scores = importance(model, ids, verify=not row.variant)
    assert set(scores) == set(row.sites)
    for site, layer in product(row.sites, range(model.cfg.n_layers)):
        truth = ablated(model, ids, layer, site)
        assert truth.max() > 1e-6
        torch.testing.assert_close(scores[site][layer], truth, **ABLATION[row.dtype])


def test_a_document_scores_the_same_beside_a_longer_one(row, model):
    shorter, longer = document(row, max(3, row.length // 4), seed=1), document(row)
    alone = [importance(model, ids, verify=False) for ids in (shorter, longer)]
    options = {"scores": "exact", "batch_size": 2, "progress": False, "verify": False}
    together = mw.detect(model, {"a": [shorter, longer]}, **options)
    for site in row.sites:
        mean = (alone[0][site] + alone[1][site]) / 2
        torch.testing.assert_close(together.mean_scores["a"][site], mean, **BATCHES[row.dtype])


def test_logits_of_the_last_stream_and_of_a_text_that_goes_on_are_those_of_transformers(row, model):
    ids = document(row)
    truth = reference_logits(row, ids)
    with torch.inference_mode():
        logits = all_logits(model, run_blocks(model, ids[None])[0])
    tolerance = LOGITS[row.dtype] * truth.abs().max()
    assert (logits - truth).abs().max() < tolerance
    assert (written(model, ids) - truth[-1]).abs().max() < tolerance


def written(model, ids, read=9):
    """Logits of what follows a document that is read in two parts."""
    reading, mask = decoder(model, 1), torch.ones_like(ids[None])
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The key-value cache")
        reading.advance(ids[None, :read], mask[:, :read])
        return reading.advance(ids[None, read:], mask[:, read:])[0]


@pytest.mark.parametrize("row", REFUSED, ids=str)
def test_refused_with_the_reason(row):
    with pytest.raises(ValueError, match=re.escape(row.refused)):
        mw.detect(decoder_model(row, torch.float32), {"a": [document(row)]}, progress=False)


@pytest.mark.parametrize("row", [row for row in REFUSED if SAME in row.refused], ids=str)
def test_where_layers_differ_those_like_the_first_are_exact(row):
    model, ids = decoder_model(row), document(row)
    alike = [layer for layer in range(model.cfg.n_layers) if layer not in layers_apart(model)]
    with pytest.raises(ValueError, match=re.escape(f"layers={alike} scores those that are like layer 0")):
        importance(model, ids)
    scores = importance(model, ids, layers=alike)
    for site, layer in product(row.sites, alike):
        torch.testing.assert_close(scores[site][layer], ablated(model, ids, layer, site), **ABLATION[row.dtype])
    detection = mw.detect(model, {"a": [ids], "b": [ids.flip(0)]}, layers=alike, top=0.5, progress=False)
    neurons = detection.active("a")
    means = mw.collect_means(model, {"a": [ids]}, progress=False)
    for options in ({}, {"mode": "mean", "values": means, "language": "a"}):
        with mw.ablate(model, neurons, **options):
            assert not torch.allclose(model(ids[None])[0], reference_logits(row, ids))
    with pytest.raises(ValueError, match=r"has no hook point|A layer has \d+ neurons"), mw.ablate(model, ~neurons):
        model(ids[None])


def test_a_model_of_transformer_lens_itself_writes_and_is_edited():
    row = next(row for row in ROWS if row.is_own)
    model, ids = decoder_model(row), document(row)
    reading = decoder(model, 1, use_cache=False)
    for part in (ids[:9], ids[9:]):
        logits = reading.advance(part[None], torch.ones_like(part[None]))
    torch.testing.assert_close(logits[0], reference_logits(row, ids)[-1])
    neurons = some_neurons(model)
    with mw.ablate(model, neurons):
        ablated = model(ids[None])
    with mw.edit_weights(model, neurons):
        torch.testing.assert_close(model(ids[None]), ablated)
    assert not torch.allclose(model(ids[None]), ablated)
