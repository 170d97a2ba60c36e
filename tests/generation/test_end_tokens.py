"""What ends a text, and what may be sampled, as the model's generation settings and its tokenizer say."""

import pytest
import torch

import mwork_lens as mw
from mwork_lens.model import bridge_on

from ..decoders.a_to_gr import GROUPED
from ..decoders.row import Decoder, transformers_model
from ..words import words

ROW = Decoder("LlamaForCausalLM", GROUPED)
PROMPT = torch.arange(3, 9)


@pytest.fixture(name="theirs")
def transformers_llama():
    return transformers_model.__wrapped__(ROW, torch.float32)


def in_memory(theirs, _):
    return mw.load_model(theirs, tokenizer=words(), device="cpu")


def from_a_directory(theirs, folder):
    theirs.save_pretrained(folder)
    words().save_pretrained(folder)
    return mw.load_model(folder, device="cpu")


def on_a_bridge(theirs, _):
    return bridge_on(theirs, words())


def first_token(theirs):
    return int(theirs(PROMPT[None]).logits[0, -1].argmax())


@pytest.mark.parametrize("load", [in_memory, from_a_directory, on_a_bridge])
def test_every_end_token_of_the_generation_settings_ends_a_text(theirs, load, tmp_path):
    theirs.generation_config.eos_token_id = [0, first_token(theirs)]
    (completion,) = mw.generate(load(theirs, tmp_path), [PROMPT], max_new_tokens=4)
    assert (completion.stopped, completion.tokens, completion.text) == ("end", (), "")


@pytest.mark.parametrize("load", [in_memory, on_a_bridge])
def test_a_text_goes_on_without_them(theirs, load, tmp_path):
    theirs.generation_config.eos_token_id = None
    first = first_token(theirs)
    (completion,) = mw.generate(load(theirs, tmp_path), [PROMPT], max_new_tokens=1)
    assert (completion.stopped, completion.tokens) == ("length", (first,))


def test_a_model_without_a_tokenizer_ends_too(theirs):
    theirs.generation_config.eos_token_id = first_token(theirs)
    model = on_a_bridge(theirs, None)
    model.tokenizer = None
    assert mw.generate(model, [PROMPT], max_new_tokens=4)[0].stopped == "end"


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_only_what_the_tokenizer_has_is_sampled(theirs, top_p):
    """The model's vocabulary of 50 is padded: the tokenizer has 11 tokens."""
    theirs.generation_config.eos_token_id = None
    with torch.inference_mode():
        logits = theirs(PROMPT[None]).logits[0, -1].double()
    drawn = mw.generate(in_memory(theirs, None), [PROMPT] * 600, max_new_tokens=1, temperature=3.0, top_p=top_p)
    tokens = torch.tensor([token for completion in drawn for token in completion.tokens or (0,)])
    expected = (logits[:11] / 3).softmax(-1)
    if top_p < 1:
        ordered, order = expected.sort(descending=True)
        expected[order[ordered.cumsum(0) - ordered >= top_p]] = 0
        expected /= expected.sum()
    assert tokens.max() < 11
    shares = torch.bincount(tokens, minlength=11) / len(tokens)
    assert (shares - expected).abs().max() < 4 * 0.5 / len(tokens) ** 0.5
    assert (shares[expected == 0] == 0).all()
