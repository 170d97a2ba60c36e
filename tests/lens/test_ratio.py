import copy
from dataclasses import replace

import pytest
import torch

import mwork_lens as mw
from mwork_lens.lens.random_directions import Draws, RandomDirections
from mwork_lens.model.forward import Encoded
from mwork_lens.model.unembedding import all_logits, label_masses, log_normalizer, top_tokens

from ..made_up import LABELS, PROMPTS, ratio
from ..tiny import FAMILIES, tiny, tokens


def states(model, ids, layer):
    """The residual stream after ``layer`` blocks, by TransformerLens's own cache."""
    _, cache = model.run_with_cache(ids[None])
    name = f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"
    return cache[name][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_reads_the_models_own_logits(family):
    model, ids = tiny(family), tokens(20)
    logits = model(ids[None])[0]
    last = states(model, ids, 2)
    values, top = top_tokens(model, last, 7)
    assert torch.equal(top, logits.topk(7).indices)
    torch.testing.assert_close(values, logits.topk(7).values)
    log_probabilities = all_logits(model, last) - log_normalizer(model, last)[:, None]
    torch.testing.assert_close(log_probabilities, logits.log_softmax(-1))


def test_a_soft_cap_on_the_logits_counts():
    cfg = tiny("gemma2").cfg
    cfg.output_logits_soft_cap, before = 2.0, cfg.output_logits_soft_cap
    try:
        test_the_last_layer_reads_the_models_own_logits("gemma2")
    finally:
        cfg.output_logits_soft_cap = before


@pytest.mark.parametrize("k", [1, 3, 20, 700])
def test_parts_of_the_vocabulary_give_the_exact_top(monkeypatch, k):
    """Chunks of every size, a remainder that fills no group, and more than a part holds."""
    model = copy.deepcopy(tiny("llama"))
    monkeypatch.setattr("mwork_lens.model.unembedding.TOKENS_AT_ONCE", 301)
    monkeypatch.setattr("mwork_lens.model.unembedding.ROWS_AT_ONCE", 4)
    monkeypatch.setattr("mwork_lens.model.unembedding.GROUP", 8)
    generator = torch.Generator().manual_seed(0)
    unembedding = torch.randn(24, 1003, generator=generator, dtype=torch.float64)
    model.unembed.W_U = torch.nn.Parameter(unembedding)
    model.unembed.b_U = torch.nn.Parameter(torch.linspace(-1, 1, 1003, dtype=torch.float64))
    hidden = torch.randn(9, 24, generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        logits = model.unembed(model.ln_final(hidden[None]))[0]
        values, ids = top_tokens(model, hidden, k)
        assert torch.equal(ids, logits.topk(k).indices)
        torch.testing.assert_close(values, logits.topk(k).values)
        members = torch.nn.functional.one_hot(torch.arange(1003) % 3).t().double()
        masses = label_masses(model, hidden, members)
        torch.testing.assert_close(masses, logits.softmax(-1) @ members.t())


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_k": 4, "normalize": False}, {"by": "mass"}])
def test_counts_are_those_of_a_plain_logit_lens(options):
    model, found = tiny("gemma3"), ratio(**options)
    for label, documents in PROMPTS.items():
        for row, ids in enumerate(documents):
            for layer in range(3):
                hidden = states(model, ids, layer)
                hidden = hidden if options.get("normalize") is False else model.ln_final(hidden[None])[0]
                logits = hidden @ model.unembed.W_U + model.unembed.b_U
                if options.get("by") == "mass":
                    members = torch.nn.functional.one_hot(LABELS.labels).double()
                    expected = (logits.softmax(-1) @ members).sum(0)
                else:
                    expected = torch.bincount(
                        LABELS.labels[logits.topk(options["top_k"]).indices.flatten()], minlength=5
                    )
                torch.testing.assert_close(found.counts[label][row, layer], expected.double(), rtol=1e-6, atol=1e-9)


def test_shares_add_up_and_what_is_not_reported_is_other():
    frame = ratio().to_frame()
    assert list(frame["language"].unique()) == ["en", "fr", "shared", "other"]
    for column in ("share", "chance", "vocabulary"):
        assert frame.groupby(["prompt_language", "layer"])[column].sum().to_numpy() == pytest.approx(1)
    assert frame.groupby(["prompt_language", "layer"])["lift"].sum().to_numpy() == pytest.approx(0)
    assert (frame["low"] <= frame["share"] + 1e-12).all()
    assert (frame["share"] <= frame["high"] + 1e-12).all()
    other = frame[frame["language"] == "other"]
    assert other["vocabulary"].to_numpy() == pytest.approx(0.4)


def test_one_batch_or_many_and_some_layers_or_all_give_the_same_counts():
    whole = ratio(top_k=5)
    one = ratio(top_k=5, batch_size=1, layers=[2, 0])
    for label, counts in one.counts.items():
        assert one.layers == (0, 2)
        assert torch.equal(counts, whole.counts[label][:, [0, 2]])


def test_positions_choose_among_ordinary_tokens():
    last = ratio(positions=[-1], top_k=1)
    assert (last.counts["en"].sum(-1) == 1).all()
    every_other = ratio(positions=slice(None, None, 2), top_k=1)
    assert every_other.counts["fr"][:, 0].sum(-1).tolist() == [4, 6]
    with pytest.raises(ValueError, match=r"positions=\[40\] leaves nothing of prompt en/0/0"):
        ratio(positions=[40])


def test_generated_tokens_are_read_on_request():
    more = ratio(new_tokens=3, top_k=1)
    assert more.counts["fr"][:, 0].sum(-1).tolist() == [10, 14]
    model, ids = tiny("gemma3"), PROMPTS["fr"][0]
    for _ in range(3):
        ids = torch.cat([ids, model(ids[None])[0, -1].argmax()[None]])
    alone = ratio(prompts={"fr": [ids]}, positions=slice(-3, None), top_k=1)
    assert torch.equal(ratio(new_tokens=3, top_k=1, positions=slice(-3, None)).counts["fr"][0], alone.counts["fr"][0])


def test_groups_and_two_rows_keep_every_count():
    found = ratio()
    two = found.two_way("en")
    assert two.languages == ("en", "non-en")
    for label, counts in found.counts.items():
        # ru was identified over, so it is non-English even though it is not reported
        assert torch.equal(two.counts[label][..., 1], counts[..., 1] + counts[..., 2])
        assert torch.equal(two.counts[label].sum(-1), counts.sum(-1))
    with pytest.raises(ValueError, match="'th'"):
        found.grouped({"mine": ["th"]})


def summed(plan, masks, seen, numbers):
    """Random directions after some batches of a plan, one state per prompt."""
    draws = Draws(plan, masks, 1, 40000, 0)
    random = RandomDirections.empty(plan, draws, 5)
    for batch in map(plan.batch, numbers):
        random.update(batch, [draws.sums(batch, seen[batch.language][list(batch.rows)])])
    return random


def test_random_directions_have_the_states_covariance():
    """Every label weighs the same, however many states it has and whoever takes which batches."""
    generator = torch.Generator().manual_seed(0)
    mix = {label: torch.randn(5, 5, generator=generator, dtype=torch.float64) for label in ("en", "fr")}
    seen = {
        label: torch.randn(n, 5, generator=generator, dtype=torch.float64) @ mix[label] + 3
        for label, n in (("en", 300), ("fr", 40))
    }
    plan = Encoded.of(tiny("llama"), {label: [tokens(2)] * len(rows) for label, rows in seen.items()}).plan(17)
    masks = {label: [torch.tensor([True, False])] * len(rows) for label, rows in seen.items()}
    random = summed(plan, masks, seen, range(len(plan)))
    odd, even = (summed(plan, masks, seen, range(first, len(plan), 2)) for first in (1, 0))
    odd.merge(even)
    for name, total in random.sums.items():
        assert torch.equal(total.value(), odd.sums[name].value())
    with pytest.raises(ValueError, match="would count twice"):
        random.merge(even)
    mean = torch.stack([rows.mean(0) for rows in seen.values()]).mean(0)
    covariance = torch.stack([(rows - mean).T @ (rows - mean) / len(rows) for rows in seen.values()]).mean(0)
    (drawn,) = random.directions([0])
    norm = torch.stack([rows.norm(dim=1).mean() for rows in seen.values()]).mean()
    torch.testing.assert_close(drawn.norm(dim=1), norm.expand(40000))
    # directions of a Gaussian: undo the scaling in the space where its covariance is the identity
    root = torch.linalg.cholesky(torch.linalg.inv(covariance))
    white = drawn @ root
    white = white / white.norm(dim=1, keepdim=True)
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(5, dtype=torch.float64) / 5, rtol=0, atol=0.01)


def test_the_verdict_rests_on_the_lift():
    """A planted lens: French prompts that decode to English at every position and layer, and noise that does not."""
    found = ratio(prompts={"fr": PROMPTS["fr"] * 5}, top_k=1)
    planted = torch.zeros_like(found.counts["fr"])
    planted[..., 0] = 1.0
    chance = torch.zeros_like(found.chance)
    chance[..., 2] = 1.0
    english = replace(found, counts={"fr": planted}, chance=chance)
    table = english.verdict("en", layers=[1])
    assert table.loc["mean", "verdict"] == "above chance"
    assert table.loc["fr", "lift"] == pytest.approx(1)
    noise = replace(found, counts={"fr": planted}, chance=planted[0][:, None].expand(-1, 16, -1).contiguous())
    assert noise.verdict("en", layers=[1]).loc["mean", "verdict"] == "at chance"
    with pytest.raises(ValueError, match="directions=0"):
        ratio(directions=0).verdict("en", layers=[1])


def test_few_documents_give_no_verdict():
    found = ratio(layers=[1])
    table = found.verdict("en", layers=[1])
    assert set(table["verdict"]) == {"not measurable"}
    assert table[["low", "high"]].isna().all(axis=None)
    assert "not measurable on fewer than 5 documents" in found.finding("en")
    again = ratio(prompts={"fr": PROMPTS["fr"] * 5}, layers=[1]).verdict("en", layers=[1])
    assert "not measurable" not in set(again["verdict"])


def test_saved_and_loaded(tmp_path):
    found = ratio(directions=0)
    found.save(tmp_path / "ratio")
    again = mw.LanguageRatio.load(tmp_path / "ratio")
    assert again.to_frame().equals(found.to_frame())
    assert again.to_frame()["chance"].isna().all()
    assert "LanguageRatio(tiny-gemma3" in repr(again)


def test_states_that_are_all_the_same_have_no_random_directions():
    with pytest.raises(ValueError, match="All states read at layer 0 are the same"):
        ratio(prompts={"en": [torch.full((8,), 3)]}, positions=[-1, -2])


@pytest.mark.parametrize("value", ["share", "lift"])
def test_figures_name_model_prompts_and_identifier_and_draw_chance(value):
    found = ratio(prompts={"en": PROMPTS["en"], "fr": PROMPTS["fr"]})
    lines, heat = mw.plots.language_ratio(found), mw.plots.language_heatmap(found, value=value)
    for figure in (lines, heat):
        assert "tiny-gemma3" in figure.layout.title.subtitle.text
        assert "by hand" in figure.layout.title.subtitle.text
        assert {"prompts in en", "prompts in fr"} <= {note.text for note in figure.layout.annotations}
    dotted = [trace for trace in lines.data if trace.line.dash == "dot"]
    frame = found.to_frame()
    for trace, language in zip(dotted, ["en", "fr"] * 2, strict=True):
        assert list(trace.y) == frame[frame["language"] == language]["chance"].tolist()[:3]
    assert len(heat.data) == (3 if value == "share" else 2)
    with pytest.raises(ValueError, match="directions=0"):
        mw.plots.language_heatmap(ratio(directions=0), value="lift")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 51}, "top_k=51 is outside 1 to 50"),
        ({"top_k": 0}, "top_k=0"),
        ({"layers": [3]}, r"layers 0 \(the embedding\) to 2, not \[3\]"),
        ({"languages": ["th"]}, r"languages=\['th'\]"),
        ({"prompts": {"en": [tokens(65)]}}, "en/0/0 has 65 tokens, more than the context of 64"),
        ({"prompts": {"en": [tokens(60)]}, "new_tokens": 5}, "en/0/0 has 60 tokens, and 5 new ones do not fit"),
        ({"prompts": {"en": ["  "]}}, "Document 0 of 'en' is empty"),
        ({"token_languages": None}, "no tokenizer"),
        ({"token_languages": None, "languages": ["ceb"]}, "'lingua' does not know 'ceb'"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ratio(**options)
