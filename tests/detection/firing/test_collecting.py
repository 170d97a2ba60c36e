"""What is counted equals a plain computation through hooks, in every family and however the corpus is dealt out."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import mwork_lens as mw
from mwork_lens.detection.firing.distributions import distribution_overlap
from mwork_lens.detection.firing.lape import lape
from mwork_lens.detection.firing.ranking import select_by_average_precision, select_by_mean_difference
from mwork_lens.model.gates import FUNCTIONS, gates_of
from mwork_lens.store import digest

from ...decoders import DECODERS, decoder_model
from ...decoders.row import GENERATION
from ...tiny import FAMILIES, HOOKED, installed, tiny, tokens, words

CORPUS = {
    "fr": [tokens(length, seed) for seed, length in enumerate((9, 4, 12))],
    "zh": [tokens(length, seed + 50) for seed, length in enumerate((7, 11))],
    "en": [tokens(length, seed + 90) for seed, length in enumerate((6, 3, 5, 8))],
}
QUIET = {"progress": False}
OTHER_CUT = {"BitNetForCausalLM": "BitNetMLP", "ModernBertDecoderForCausalLM": "ModernBertDecoderMLP"}
BRIDGES = {
    str(row): row
    for row in DECODERS
    if not row.refused and GENERATION in row.generations and row.can_be_built and not row.is_own
}
"""Of every way in which TransformerLens wraps a feed-forward."""
WRAPPED = ["Phi3ForCausalLM-long-rope", "BloomForCausalLM-stream normed", "ApertusForCausalLM"]
WRAPPED += ["GraniteMoeHybridForCausalLM", "StableLmForCausalLM", "OPTForCausalLM-normed sums"]


def gates_by_hand(model, ids, layer):
    """[pos, neuron], by an independent pass."""
    _, cache = model.run_with_cache(ids)
    if not model.cfg.gated_mlp:
        return cache[f"blocks.{layer}.mlp.hook_post"][0]
    pre = cache[f"blocks.{layer}.mlp.hook_pre"][0]
    return functional.silu(pre) if model.cfg.act_fn == "silu" else functional.gelu(pre, approximate="tanh")


def require_counted(firing, by_hand, layers=2, **tolerance):
    """Against every token's values, ``by_hand(ids, layer)``."""
    for language, documents in CORPUS.items():
        for layer in range(layers):
            values = [by_hand(ids, layer) for ids in documents]
            every = torch.cat(values).double()
            assert torch.equal(firing.counts[language][layer], (every > 0).sum(0))
            for power, sums in ((1, firing.sums), (2, firing.squares)):
                total = every.pow(power).sum(0)
                torch.testing.assert_close(sums[language].value()[layer], total, **tolerance)
            means = torch.stack([each.mean(0) for each in values]).float()
            torch.testing.assert_close(firing.document_means[language][:, layer], means, rtol=1e-5, atol=1e-6)
        assert firing.tokens[language] == sum(map(len, documents))


@pytest.mark.skipif(not HOOKED, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_and_sums_are_those_of_plain_hooks(family):
    model = tiny(family)
    firing = mw.collect_firing(model, CORPUS, document_means=True, batch_size=2, **QUIET)
    require_counted(firing, lambda ids, layer: gates_by_hand(model, ids, layer), rtol=1e-10, atol=1e-12)
    assert installed(model) == {}


@pytest.mark.parametrize("name", WRAPPED)
def test_on_a_bridge_they_are_what_transformers_own_modules_give(name):
    row = BRIDGES[name]
    model = decoder_model(row)
    functions = [module for path, module in model.original_model.named_modules() if path.split(".")[-1] in FUNCTIONS]
    modules = [each for each in functions if type(each).__name__ not in ("ModuleList", "str")]

    width = mw.NeuronSpace.of(model).d_mlp

    def by_hand(ids, layer):
        seen = []
        handles = [module.register_forward_hook(lambda m, i, out: seen.append(out)) for module in modules]
        with torch.no_grad():
            model.original_model(ids[None], use_cache=False)
        for handle in handles:
            handle.remove()
        wide = [each.reshape(-1, each.shape[-1]) for each in seen if each.shape[-1] == width]
        return wide[layer]

    firing = mw.collect_firing(model, CORPUS, document_means=True, batch_size=2, **QUIET)
    require_counted(firing, by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", OTHER_CUT)
def test_a_feed_forward_of_another_form_is_refused(architecture):
    row = next(row for name, row in BRIDGES.items() if name.startswith(architecture))
    message = rf"layer 0 \({OTHER_CUT[architecture]}\) does not show the activation of its gate"
    with pytest.raises(ValueError, match=message):
        mw.collect_firing(decoder_model(row), CORPUS, **QUIET)


def test_special_tokens_and_padding_do_not_count():
    from ...tiny import spelled

    model = spelled("llama")
    firing = mw.collect_firing(model, {"a": ["a b c d", "b c"], "b": ["e f"]}, **QUIET)
    assert firing.tokens == {"a": 6, "b": 2}
    pre = [model.run_with_cache(model.to_tokens(text))[1]["blocks.1.mlp.hook_pre"][0] for text in ("a b c d", "b c")]
    assert torch.equal(firing.counts["a"][1], sum((each[1:] > 0).sum(0) for each in pre))
    assert words().bos_token_id is not None


@pytest.fixture(scope="module")
def firing():
    options = mw.HistogramOptions(bins=40)
    return mw.collect_firing(tiny("gemma3"), CORPUS, document_means=True, histograms=options, batch_size=2, **QUIET)


def test_histograms_count_every_token_in_its_bin(firing):
    model = tiny("gemma3")
    values = {
        language: torch.stack([torch.cat([gates_by_hand(model, ids, layer) for ids in texts]) for layer in range(2)])
        for language, texts in CORPUS.items()
    }
    pooled = torch.cat(list(values.values()), 1)
    mean, deviation = pooled.mean(1), pooled.std(1, correction=0)
    low, high = (mean - 3 * deviation).clamp(min=-0.4), mean + 3 * deviation
    torch.testing.assert_close(firing.bins.low, low, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(firing.bins.high, high, rtol=1e-9, atol=1e-12)
    for language, each in values.items():
        found = firing.histograms[language]
        assert (found.sum(-1) == firing.tokens[language]).all()
        inside = torch.searchsorted(
            low[..., None] + (high - low)[..., None] * torch.arange(41) / 40,
            each.permute(0, 2, 1).contiguous(),
            right=True,
        )
        expected = torch.stack([(inside == b).sum(-1) for b in range(42)], -1)
        assert (found - expected).abs().sum() <= 2  # rounding at an edge


def test_sets_are_those_of_the_selections(firing):
    stack = {name: torch.stack([getattr(firing, name)[tag] for tag in CORPUS]) for name in ("counts", "histograms")}
    numbers = torch.tensor([firing.tokens[tag] for tag in CORPUS])
    sums, squares = (torch.stack([each[tag].value() for tag in CORPUS]) for each in (firing.sums, firing.squares))
    means = torch.cat([firing.document_means[tag] for tag in CORPUS])
    overlap = distribution_overlap(stack["histograms"], percentile=20.0)
    single = overlap.masks & (overlap.masks.sum(0) == 1)
    expected = {
        "lape": (firing.lape(top=0.2), lape(stack["counts"], numbers, top=0.2)),
        "mean difference": (
            firing.mean_difference(size=4),
            select_by_mean_difference(sums, squares, numbers, size=4),
        ),
        "average precision": (
            firing.average_precision(size=0.1),
            select_by_average_precision(means, torch.tensor([0] * 3 + [1] * 2 + [2] * 4), size=0.1),
        ),
        "overlap": (firing.distribution_overlap(percentile=20.0), overlap.masks),
        "single": (firing.distribution_overlap(percentile=20.0, population="single"), single),
    }
    for name, (sets, masks) in expected.items():
        assert list(sets) == list(CORPUS)
        assert masks.any(), name
        for (language, neurons), mask in zip(sets.items(), masks, strict=True):
            assert torch.equal(neurons.masks["mlp"], mask)
            assert len(neurons) == int(mask.sum())
            assert neurons.origin.language == language
            assert neurons.origin.seen == firing.seen


def test_parts_make_the_whole_to_the_last_bit(firing, tmp_path):
    options = {"document_means": True, "batch_size": 2, **QUIET}
    model, histograms = tiny("gemma3"), mw.HistogramOptions(bins=40, like=firing)
    parts = [mw.collect_firing(model, CORPUS, shard=(i, 3), histograms=histograms, **options) for i in (2, 0, 1)]
    parts[0].save(tmp_path / "part")
    parts[0] = mw.Firing.load(tmp_path / "part")
    merged = mw.Firing.merge(parts)
    assert digest(replace(merged, seen=None)) == digest(replace(firing, seen=None))
    assert {tag: set(each.tolist()) for tag, each in merged.seen.texts.items()} == {
        tag: set(each.tolist()) for tag, each in firing.seen.texts.items()
    }
    with pytest.raises(ValueError, match="This is a part of a corpus: merge all parts first"):
        parts[1].lape()
    with pytest.raises(ValueError, match=r"shard=\(0, 3\) with histograms: .*like="):
        mw.collect_firing(model, CORPUS, shard=(0, 3), histograms=mw.HistogramOptions(), **options)


def test_other_documents_add_up_and_the_same_ones_do_not():
    model = tiny("llama")
    one = mw.collect_firing(model, {"fr": CORPUS["fr"], "en": CORPUS["en"][:2]}, batch_size=1, **QUIET)
    other = mw.collect_firing(model, {"en": CORPUS["en"][2:], "zh": CORPUS["zh"]}, batch_size=1, **QUIET)
    whole = mw.collect_firing(model, CORPUS, batch_size=1, **QUIET)
    merged = mw.Firing.merge([other, one])
    for language in CORPUS:
        assert torch.equal(merged.means(language), whole.means(language))
    assert digest({tag: each.masks for tag, each in merged.lape(top=0.1).items()}) == digest(
        {tag: whole.lape(top=0.1)[tag].masks for tag in merged.languages}
    )
    with pytest.raises(ValueError, match="is both in firing"):
        mw.Firing.merge([one, whole])


def test_histograms_of_some_layers_and_documents(firing):
    options = mw.HistogramOptions(bins=10, tokens=8, layers=[1], like=firing)
    some = mw.collect_firing(tiny("gemma3"), CORPUS, histograms=options, **QUIET)
    assert some.histograms["fr"].shape == (1, 20, 12)
    assert {tag: int(each[0, 0].sum()) for tag, each in some.histograms.items()} == {"fr": 9, "zh": 18, "en": 9}
    sets = some.distribution_overlap(percentile=100.0)
    assert all(not each.masks["mlp"][0].any() for each in sets.values())
    assert any(each.masks["mlp"][1].any() for each in sets.values())
    assert sets["fr"].origin["tokens"] == 8


def test_what_was_not_collected_and_what_does_not_fit_is_refused():
    model = tiny("llama")
    firing = mw.collect_firing(model, CORPUS, **QUIET)
    pair = mw.collect_firing(
        model, {tag: CORPUS[tag] for tag in ("fr", "en")}, histograms=mw.HistogramOptions(), **QUIET
    )
    for call, message in [
        (firing.average_precision, "no document means"),
        (firing.distribution_overlap, "no histograms"),
        (pair.distribution_overlap, r"2 languages \(fr, en\), and 3"),
        (lambda: firing.means("th"), "'th'; there are fr, zh, en"),
        (lambda: mw.HistogramOptions(bins=0), "bins=0"),
        (lambda: mw.HistogramOptions(layers=[]), "names no layer"),
        (lambda: mw.collect_firing(model, CORPUS, histograms=mw.HistogramOptions(layers=[2])), "layers 0 to 1, not 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_gates_are_tried_once():
    model = tiny("gpt2")
    assert gates_of(model) is gates_of(model)
    assert [gate.function for gate in gates_of(model)] == [None, None]
