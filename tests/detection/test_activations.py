import pytest
import torch
from transformer_lens import TransformerLensKeyValueCache

import mwork_lens as mw
from mwork_lens.model.sites import SITES

from ..tiny import KINDS, installed, some_neurons, tiny, tokens, words

CORPUS = {
    "fr": [tokens(length, seed) for seed, length in enumerate((9, 4, 12))],
    "zh": [tokens(length, seed + 50) for seed, length in enumerate((7, 11))],
}
NAMES = [(s.hook_name(layer), s.name, layer) for layer in range(2) for s in SITES.values()]


def caught(model, documents):
    """Every site's activations over all positions of the documents, by an independent pass for each document."""
    caches = [model.run_with_cache(ids)[1] for ids in documents]
    return {(site, layer): torch.cat([c[name][0].flatten(1) for c in caches]) for name, site, layer in NAMES}


def french(model, share=0.3):
    neurons = some_neurons(model, share)
    return mw.NeuronSet(neurons.space, neurons.masks, {"language": "fr"})


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("family", KINDS)
def test_means_are_over_all_ordinary_tokens(family, batch_size):
    model = tiny(family)
    means = mw.collect_means(model, CORPUS, batch_size=batch_size, progress=False)
    assert means.tokens == {"fr": 25, "zh": 18}
    for language, documents in CORPUS.items():
        for (site, layer), values in caught(model, documents).items():
            torch.testing.assert_close(means.of(language)[site][layer], values.mean(0), rtol=1e-10, atol=1e-12)
        streams = [model.run_with_cache(ids)[1]["blocks.1.hook_resid_post"][0] for ids in documents]
        torch.testing.assert_close(means.streams[language][1], torch.cat(streams).mean(0), rtol=1e-10, atol=1e-12)
    assert installed(model) == {}


def test_a_sample_is_one_real_state_of_the_model():
    model = tiny("llama")
    drawn = [mw.collect_samples(model, CORPUS, seed=seed) for seed in range(6)]
    for sample in drawn:
        assert sample.tokens == {"fr": 1, "zh": 1}
        for language, documents in CORPUS.items():
            pool = caught(model, documents)
            same = [
                ((values - sample.of(language)[site][layer]).abs() < 1e-12).all(-1)
                for (site, layer), values in pool.items()
            ]
            assert torch.stack(same).all(0).sum() == 1
    assert len({float(sample.of("fr")["mlp"][0, 0]) for sample in drawn}) > 1


def test_saved_activations_are_the_same(tmp_path):
    means = mw.collect_means(tiny("gemma3"), CORPUS, progress=False)
    means.save(tmp_path / "means")
    loaded = mw.Activations.load(tmp_path / "means")
    for language in CORPUS:
        assert torch.equal(loaded.streams[language], means.streams[language])
        assert all(torch.equal(loaded.of(language)[site], values) for site, values in means.of(language).items())
    assert (loaded.space, loaded.tokens, loaded.settings) == (means.space, means.tokens, means.settings)


def expected(mode, means, sample):
    return {
        "zero": lambda was, site, layer: torch.zeros_like(was),
        "mean": lambda was, site, layer: (means.of("fr")[site][layer] + means.of("zh")[site][layer]) / 2,
        "language_mean": lambda was, site, layer: means.of("fr")[site][layer],
        "set": lambda was, site, layer: means.of("zh")[site][layer],
        "scale": lambda was, site, layer: was * 1.5,
        "resample": lambda was, site, layer: sample.of("fr")[site][layer],
    }[mode]


@pytest.mark.parametrize("mode", ["zero", "mean", "language_mean", "set", "scale", "resample"])
@pytest.mark.parametrize("family", KINDS)
def test_exactly_the_set_is_changed_as_the_mode_says(family, mode):
    model, neurons, ids = tiny(family), french(tiny(family)), tokens(7)
    means, sample = mw.collect_means(model, CORPUS, progress=False), mw.collect_samples(model, CORPUS)
    options = {"set": {"values": means, "language": "zh"}, "scale": {"factor": 1.5}, "resample": {"values": sample}}
    options |= {mode: {"values": means} for mode in ("mean", "language_mean")}
    before = {}
    keep = [(name, lambda activation, hook: before.update({hook.name: activation.clone()})) for name, *_ in NAMES]
    clean = model(ids)
    with model.hooks(fwd_hooks=keep), mw.ablate(model, neurons, mode, **options.get(mode, {})):
        _, after = model.run_with_cache(ids, names_filter=[name for name, *_ in NAMES])
    for name, site, layer in NAMES:
        mask, was = neurons.masks[site][layer], before[name].flatten(2)
        wanted = torch.where(mask, expected(mode, means, sample)(was, site, layer), was)
        torch.testing.assert_close(after[name].flatten(2), wanted, rtol=0, atol=1e-12)
    assert torch.equal(model(ids), clean)


def test_french_off_and_chinese_on_are_two_interventions():
    model, ids = tiny("llama"), tokens(6)
    means, off = mw.collect_means(model, CORPUS, progress=False), french(model, 0.2)
    on = some_neurons(model, 0.2, seed=7) - off
    one = [*off.hooks("set", values=means, language="zh"), *on.hooks("set", values=dict(means.of("zh")))]
    together = mw.NeuronSet(off.space, (off | on).masks).hooks("set", values=means, language="zh")
    assert torch.equal(model.run_with_hooks(ids, fwd_hooks=one), model.run_with_hooks(ids, fwd_hooks=together))


@pytest.mark.parametrize("mode", ["zero", "mean", "scale"])
def test_half_precision_stays_half_and_moves_between_devices(mode):
    model = tiny("llama", torch.bfloat16)
    means = mw.collect_means(model, CORPUS, progress=False)
    assert means.of("fr")["mlp"].dtype == torch.float32
    options = {"mean": {"values": means}, "scale": {"factor": 0.5}}.get(mode, {})
    with mw.ablate(model, french(model), mode, **options):
        logits = model(tokens(6))
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
    _, function = french(model).hooks(mode, **options)[0]
    activation = torch.randn(1, 3, 4, 8, dtype=torch.bfloat16)
    first = function(activation)
    elsewhere = function(activation.to("meta"))
    assert (elsewhere.device.type, elsewhere.dtype) == ("meta", torch.bfloat16)
    assert torch.equal(function(activation), first)


@pytest.fixture
def spelled():
    """A tiny model with a tokenizer, whose ids 0 to 2 are special."""
    from copy import deepcopy

    model = deepcopy(tiny("llama"))
    tokenizer = words()
    tokenizer.init_kwargs |= {"name_or_path": "words", "add_bos_token": True}
    model.set_tokenizer(tokenizer, default_padding_side="left")
    model.cfg.d_vocab = 50
    return model


@pytest.mark.parametrize("cached", [False, True])
def test_special_tokens_and_padding_are_spared(spelled, cached):
    ids = torch.tensor([[0, 0, 1, 5, 6], [1, 2, 7, 8, 9]])
    content = ids > 2
    name, neurons = "blocks.0.attn.hook_q", french(spelled)
    seen = []
    keep = (name, lambda activation, hook: seen.append(activation.flatten(2)))
    with mw.ablate(spelled, neurons, positions="content"), spelled.hooks(fwd_hooks=[keep]):
        if cached:
            cache = TransformerLensKeyValueCache.init_cache(spelled.cfg, "cpu", batch_size=2)
            for part in ids.split([3, 1, 1], 1):
                spelled(part, past_kv_cache=cache, attention_mask=torch.ones_like(part))
        else:
            spelled(ids, attention_mask=torch.ones_like(ids))
    zero = (torch.cat(seen, 1)[..., neurons.masks["q"][0]] == 0).all(-1)
    assert torch.equal(zero, content)


def test_sparing_needs_the_tokens(spelled):
    content = mw.ContentPositions(spelled)
    hooks = french(spelled).hooks(positions=content)
    with pytest.raises(RuntimeError, match="enter ContentPositions"):
        spelled.run_with_hooks(tokens(4), fwd_hooks=hooks)


def test_bad_options_are_refused_at_once():
    model = tiny("llama")
    neurons, means = french(model), mw.collect_means(model, CORPUS, progress=False)
    sample = mw.collect_samples(model, CORPUS)
    for message, mode, options in [
        ("a factor belongs to 'scale'", "scale", {}),
        ("a factor belongs to 'scale'", "zero", {"factor": 2.0}),
        ("needs values=", "mean", {}),
        ("takes no values=", "zero", {"values": means}),
        ("needs language=", "set", {"values": means}),
        ("'th'; there are fr, zh", "set", {"values": means, "language": "th"}),
        ("needs values of collect_means", "mean", {"values": sample}),
        ("needs values of collect_samples", "resample", {"values": means}),
        (r"values of q have shape None", "set", {"values": {}}),
    ]:
        with pytest.raises(ValueError, match=message):
            mw.ablate(model, neurons, mode, **options)
    with pytest.raises(ValueError, match="do not fit"):
        french(tiny("olmo2")).hooks("mean", values=means)
