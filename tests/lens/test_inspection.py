import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mwork_lens as mw
from mwork_lens.lens.inspection import Strongest
from mwork_lens.lens.neuron_cards import NeuronCards
from mwork_lens.model.sites import SITES

from ..made_up import LABELS
from ..tiny import FAMILIES, tiny, tokens

CORPUS = {"en": [tokens(9, 1), tokens(14, 2)], "fr": [tokens(7, 4), tokens(11, 5), tokens(30, 6)]}
NEURONS = [(0, "mlp", 3), (1, "mlp", 17), (1, "v", 5), (0, "q", 9), (1, "mlp", 0)]


def cards(family="llama", neurons=NEURONS, **options):
    options = {"token_languages": LABELS, "progress": False, "top_k": 4, "contexts": 3, **options}
    return mw.inspect(tiny(family), neurons, CORPUS, **options)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_what_neurons_read_is_what_the_hooks_see(family, batch_size):
    model, found = tiny(family), cards(family, batch_size=batch_size)
    for i, (layer, site, neuron) in enumerate(found.neurons):
        every = []
        for j, documents in enumerate(CORPUS.values()):
            caches = [model.run_with_cache(ids[None])[1] for ids in documents]
            values = torch.cat([c[SITES[site].hook_name(layer)].flatten(2)[0, :, neuron] for c in caches])
            assert found.mean[i, j].item() == pytest.approx(values.mean().item(), rel=1e-5, abs=1e-8)
            assert found.magnitude[i, j].item() == pytest.approx(values.abs().mean().item(), rel=1e-5)
            if site == "mlp":
                gates = torch.cat([c[f"blocks.{layer}.mlp.hook_pre"][0, :, neuron] for c in caches])
                assert found.firing_rate[i, j].item() == pytest.approx((gates > 0).double().mean().item())
            else:
                assert found.firing_rate[i, j].isnan()
            every.append(values)
        strongest = torch.cat(every)
        strongest = strongest[strongest.abs().topk(3).indices]
        torch.testing.assert_close(found.strongest[i], strongest.float())
        for value, context in zip(found.strongest[i].tolist(), found.contexts[i], strict=True):
            passage = int(context["passage"].split("/")[1])
            ids = CORPUS[context["language"]][passage]
            _, cache = model.run_with_cache(ids[None])
            there = cache[SITES[site].hook_name(layer)].flatten(2)[0, context["position"], neuron].item()
            assert there == pytest.approx(value, rel=1e-5)
            assert context["token"] == f"<{ids[context['position']].item()}>"


VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0])


@given(st.lists(VALUES, max_size=12), st.integers(1, 5), st.data())
def test_the_strongest_are_the_same_whatever_the_batches(values, number, data):
    """Equally strong ones too: in the order of the corpus."""
    places = data.draw(st.permutations(range(len(values))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    best = Strongest(torch.zeros(1, number), torch.full((1, number), -1))
    for start, stop in zip([0, *cuts], [*cuts, len(values)], strict=True):
        where = torch.tensor(places[start:stop], dtype=torch.long)
        best.add(Strongest.among(torch.tensor(values)[where][None], where[None], number))
    expected = sorted(range(len(values)), key=lambda place: (-abs(values[place]), place))[:number]
    none = number - len(expected)
    assert best.where.tolist() == [expected + [-1] * none]
    assert best.values.tolist() == [[values[place] for place in expected] + [0.0] * none]


def test_contexts_of_equal_strength_come_in_the_order_of_the_corpus():
    """Every text is the same token over and over, and so is every activation of the first block's values."""
    model, corpus = tiny("llama"), {"en": [torch.full((n,), 7) for n in (9, 3, 5)], "fr": [torch.full((4,), 7)]}
    options = {"token_languages": LABELS, "progress": False, "contexts": 14}
    for batch_size in (1, 2, None):
        found = mw.inspect(model, [(0, "v", 5)], corpus, batch_size=batch_size, **options)
        assert len(set(found.strongest[0].tolist())) == 1
        places = [(context["passage"], context["position"]) for context in found.contexts[0]]
        assert places == [(f"en/{i}/0", position) for i, n in enumerate((9, 3, 5)) for position in range(n)][:14]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "neox", "gemma2"])
def test_what_neurons_write_is_the_direct_path(family):
    """Raise the neuron at the last layer's structure and carry only its own output through norm and unembedding."""
    model, found = tiny(family), cards(family, neurons=[(1, "mlp", 17), (1, "v", 5)])
    for i, (layer, site, neuron) in enumerate(found.neurons):
        if site == "mlp":
            added = model.blocks[layer].mlp.W_out[neuron]
        else:
            attention = model.blocks[layer].attn
            group, index = divmod(neuron, 8)
            heads = attention.W_O.shape[0] // (getattr(model.cfg, "n_key_value_heads", None) or 4)
            added = attention.W_O[group * heads : (group + 1) * heads, index].sum(0)
        post = "ln2_post" if site == "mlp" else "ln1_post"
        if family.startswith("gemma"):
            added = added * getattr(model.blocks[layer], post).w
        weight = model.ln_final.w
        centred = added - added.mean() if model.cfg.normalization_type == "LN" else added
        effect = (centred * weight) @ model.unembed.W_U * found.sign[i]
        assert torch.equal(found.promoted[i], effect.topk(4).indices)
        assert torch.equal(found.suppressed[i], (-effect).topk(4).indices)


def test_queries_and_keys_write_nothing():
    found = cards()
    row = next(i for i, (_, site, _) in enumerate(found.neurons) if site == "q")
    assert (found.promoted[row] == -1).all()
    assert found.to_frame().loc[row, "promotes"] == []


def test_the_summary_counts_promoted_tokens_by_language():
    found = cards(neurons=[(layer, "mlp", i) for layer in (0, 1) for i in range(20)])
    labels = LABELS.labels[found.promoted]
    english = NeuronCards.summary(found, "en")
    assert english["share"] == pytest.approx((labels == 0).double().mean().item())
    assert english["low"] < english["share"] < english["high"]
    assert english["vocabulary"] == pytest.approx(0.2)
    frame = found.written().set_index(["layer", "language"])
    assert frame.loc[(1, "fr"), "share"] == pytest.approx((labels[20:] == 1).double().mean().item())
    assert (frame["low"] <= frame["share"]).all()
    with pytest.raises(ValueError, match="'th'"):
        found.summary("th")
    figure = mw.plots.promoted_language({"a": found, "b": found}, "fr")
    assert len(figure.data) == 4
    assert "by hand" in figure.layout.title.subtitle.text
    figure = mw.plots.promoted_language({"a": found, "readers": cards(neurons=[(1, "q", 3), (0, "k", 2)])}, "fr")
    assert "nan" not in str(figure.data)
    assert [trace.name for trace in figure.data if trace.name][-1] == "readers: no v or mlp neurons"


def test_a_set_is_inspected_and_kept(tmp_path):
    found = cards(neurons=mw.NeuronSet.from_list(mw.NeuronSpace.of(tiny("llama")), NEURONS))
    assert set(found.neurons) == set(NEURONS)
    found.save(tmp_path / "cards")
    again = NeuronCards.load(tmp_path / "cards")
    assert again.to_html() == found.to_html()
    assert (
        again.to_frame()
        .drop(columns="firing_en")
        .astype(str)
        .equals(found.to_frame().drop(columns="firing_en").astype(str))
    )


def test_texts_are_escaped():
    found = cards()
    assert "<7>" not in found.to_html()
    assert "&lt;" in found.to_html()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": []}, "holds no neuron"),
        ({"neurons": [(0, "mlp", 20)]}, r"\(0, 'mlp', 20\)"),
        ({"contexts": 0}, "contexts=0"),
        ({"top_k": 51}, "top_k=51"),
        ({"token_languages": None}, "no tokenizer"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        cards(**options)


def test_sets_of_other_models_are_refused():
    assert FAMILIES
    other = mw.NeuronSet.from_list(mw.NeuronSpace.of(tiny("gpt2")), [(0, "mlp", 1)])
    with pytest.raises(ValueError, match="do not fit"):
        cards("olmo2", neurons=other)
