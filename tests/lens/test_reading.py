import pytest
import torch

from mwork_lens.lens.directions import Draws, Reading, directions
from mwork_lens.model.forward import Encoded

from ..made_up import LABELS, PROMPTS, ratio
from ..tiny import residual, tiny, tokens


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_k": 4, "normalize": False}, {"by": "mass"}])
def test_counts_are_those_of_a_plain_logit_lens(options):
    model, found = tiny("gemma3"), ratio(**options)
    for label, documents in PROMPTS.items():
        for row, ids in enumerate(documents):
            for layer in range(3):
                hidden = residual(model, ids, layer)
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


def summed(plan, masks, seen, numbers):
    """Random directions after some batches of a plan, one state per prompt."""
    draws = Draws(plan, masks, 1, 40000, 0)
    reading = Reading.empty(plan, draws, 1, 5)
    for batch in map(plan.batch, numbers):
        sums = draws.sums(batch, 0, seen[batch.language][list(batch.rows)])
        reading.update(batch, [(torch.ones(len(batch.rows), 1), sums)])
    return reading


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
    (drawn,) = directions(random.sums, [0])
    norm = torch.stack([rows.norm(dim=1).mean() for rows in seen.values()]).mean()
    torch.testing.assert_close(drawn.norm(dim=1), norm.expand(40000))
    # directions of a Gaussian: undo the scaling in the space where its covariance is the identity
    root = torch.linalg.cholesky(torch.linalg.inv(covariance))
    white = drawn @ root
    white = white / white.norm(dim=1, keepdim=True)
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(5, dtype=torch.float64) / 5, rtol=0, atol=0.01)


def test_states_that_are_all_the_same_have_no_random_directions():
    with pytest.raises(ValueError, match="All states read at layer 0 are the same"):
        ratio(prompts={"en": [torch.full((8,), 3)]}, positions=[-1, -2])
    with pytest.raises(ValueError, match="One position has no covariance"):
        ratio(prompts={"en": [tokens(8)]}, positions=[-1])


def test_draws_are_the_same_in_any_order_and_again():
    plan = Encoded.of(tiny("llama"), {"en": [tokens(4, i) for i in range(3)]}).plan(1)
    masks = {"en": [torch.ones(4, dtype=torch.bool)] * 3}

    def drawn(order):
        draws = Draws(plan, masks, 2, 5, 0)
        return [draws.sums(plan.batch(number), layer, torch.eye(4))["drawn"] for number, layer in order]

    order = [(number, layer) for number in range(3) for layer in range(2)]
    expected = dict(zip(order, drawn(order), strict=True))
    assert len({tuple(one.flatten().tolist()) for one in expected.values()}) == 6
    mixed = [(1, 0), (1, 1), (1, 1), (1, 0), (2, 1), (0, 0), (0, 0)]
    for place, one in zip(mixed, drawn(mixed), strict=True):
        assert torch.equal(one, expected[place])
