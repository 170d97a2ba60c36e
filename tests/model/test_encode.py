"""Texts as token ids that the model has an embedding for, with one BOS."""

import pytest
import torch

import mwork_lens as mw
from mwork_lens.model import bridge_on, encode

from ..decoders.a_to_gr import GPT, GROUPED
from ..decoders.row import Decoder, decoder_model, transformers_model
from ..words import words


def llama():
    return decoder_model(Decoder("LlamaForCausalLM", GROUPED), torch.float32)


def gpt2():
    return decoder_model(Decoder("GPT2LMHeadModel", GPT), torch.float32)


def bridge():
    tokenizer = words()
    tokenizer.init_kwargs |= {"name_or_path": "words", "add_bos_token": True}
    return bridge_on(transformers_model.__wrapped__(Decoder("LlamaForCausalLM", GROUPED), torch.float32), tokenizer)


@pytest.mark.parametrize("load", [llama, gpt2, bridge])
@pytest.mark.parametrize(
    ("text", "ids"),
    [("a", [1, 3]), ("<bos>a", [1, 3]), ("<bos><bos>a", [1, 1, 3]), ("a<bos>", [1, 3, 1])],
)
def test_a_text_that_begins_with_the_bos_gets_no_second_one(load, text, ids):
    (encoded,) = encode(load(), [text], ["fr 1"], None)
    assert encoded.tolist() == ids


@pytest.mark.parametrize("load", [llama, gpt2, bridge])
def test_a_token_beyond_the_embedding_is_refused_with_its_text(load):
    model = load()
    model.tokenizer.add_tokens([f"<{number}>" for number in range(60)])  # 11 to 70; the model has 50 embeddings
    (within,) = encode(model, ["a<38>"], ["fr 1"], None)
    assert within.tolist() == [1, 3, 49]
    with pytest.raises(ValueError, match=r"^Document fr/b: '<39>' is token 50, beyond the 50 embeddings of \w+"):
        encode(model, ["a", "a<39>"], ["fr/a", "fr/b"], None)
    for use in (lambda: mw.generate(model, ["a", "a<59>"]), lambda: mw.detect(model, {"fr": ["a<59>"]})):
        with pytest.raises(ValueError, match="'<59>' is token 70"):
            use()
    with pytest.raises(ValueError, match="Document fr 1 has token ids outside 0 to 49"):
        encode(model, [torch.tensor([1, 50])], ["fr 1"], None)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("document", "fault"),
    [
        (["a b"], "a list, not a string or a tensor of ids"),
        (None, "a NoneType, not a string"),
        ([3, 4], "a list, not a string"),
        ("a \ud83d b", r"not text: character 3 is half of one \(a lone surrogate, U\+D83D\)"),
        ("a\0b", "not clean text: it holds a NUL character at character 2"),
        (torch.tensor([[3, 4]]), r"a tensor of shape \(1, 2\)"),
    ],
)
def test_what_is_no_document_is_refused_wherever_one_is_read(document, fault):
    model = llama()
    uses = [lambda: mw.generate(model, [document]), lambda: mw.importance(model, document)]
    uses += [lambda: encode(model, ["a", document], ["fr/a", "given"], None)]
    for use in uses:
        with pytest.raises(ValueError, match=rf"^Document (prompt 0|given) is {fault}"):
            use()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("model", [None, torch.nn.Linear(2, 2)])
def test_what_is_no_hooked_model_is_said(model):
    corpus = {"fr": ["a b"], "en": ["c d"]}
    for use in (mw.detect, mw.language_losses, mw.collect_means, mw.language_ratio):
        with pytest.raises(ValueError, match=r"is not a hooked model: load it first, model = mw\.load_model"):
            use(model, corpus)
    with pytest.raises(ValueError, match="is not a hooked model"):
        mw.importance(model, "a b")
    with pytest.raises(ValueError, match="is not a hooked model"):
        mw.check_scores(model)
    with pytest.raises(ValueError, match="is not a hooked model"):
        mw.generate(model, ["a b"])
