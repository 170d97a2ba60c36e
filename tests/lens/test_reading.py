import pytest
import torch

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
