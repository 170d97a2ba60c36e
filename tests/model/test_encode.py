"""Texts as token ids that the model has an embedding for, with one BOS."""

import copy

import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformer_lens.model_bridge import TransformerBridge

import mwork_lens as mw
from mwork_lens.model import bridge_on, encode

from ..decoders.a_to_gr import GPT, GROUPED
from ..decoders.row import Decoder, decoder_model, transformers_model
from ..tiny import HOOKED, tiny
from ..words import words


def llama():
    return decoder_model(Decoder("LlamaForCausalLM", GROUPED), torch.float32)


def gpt2():
    return decoder_model(Decoder("GPT2LMHeadModel", GPT), torch.float32)


def named():
    """A tokenizer that TransformerLens need not look for."""
    tokenizer = words()
    tokenizer.init_kwargs |= {"name_or_path": "words", "add_bos_token": True}
    return tokenizer


def bridge():
    return bridge_on(transformers_model.__wrapped__(Decoder("LlamaForCausalLM", GROUPED), torch.float32), named())


@pytest.mark.parametrize("load", [llama, gpt2, bridge])
@pytest.mark.parametrize(
    ("text", "ids"),
    [("a", [1, 3]), ("<bos>a", [1, 3]), ("<bos><bos>a", [1, 1, 3]), ("a<bos>", [1, 3, 1])],
)
def test_a_text_that_begins_with_the_bos_gets_no_second_one(load, text, ids):
    (encoded,) = encode(load(), [text], ["fr 1"], None)
    assert encoded.tolist() == ids


def with_tokenizer(wrap, tokenizer):
    theirs = transformers_model.__wrapped__(Decoder("LlamaForCausalLM", GROUPED), torch.float32)
    return wrap(theirs, tokenizer)


def in_memory(theirs, tokenizer):
    return mw.load_model(theirs, tokenizer=tokenizer, device="cpu")


@pytest.mark.parametrize("wrap", [in_memory, bridge_on])
@pytest.mark.parametrize(
    ("begin", "end", "ids"), [("<bos>", "h", [1, 3, 10, 4]), ("<unk> <bos>", None, [2, 1, 3, 10, 4])]
)
def test_what_a_tokenizer_puts_before_a_text_stays_and_what_it_puts_after_one_does_not(wrap, begin, end, ids):
    """An end token of the tokenizer's would end every prompt; one that the text holds stays."""
    tokenizer, known = words(), words().get_vocab()
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.eos_token = "h"
    pattern = " ".join(filter(None, (begin, "$A", end)))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=pattern, special_tokens=[(word, known[word]) for word in pattern.split() if word != "$A"]
    )
    model = with_tokenizer(wrap, tokenizer)
    assert encode(model, ["a h b"], ["fr 1"], None)[0].tolist() == ids
    assert encode(model, ["a b h"], ["fr 1"], None)[0].tolist()[-2:] == [4, 10]


def test_nothing_begins_a_text_where_the_tokenizer_knows_neither_beginning_nor_end():
    """TransformerLens would make up a token, which the model was not trained with."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words().backend_tokenizer)
    model = with_tokenizer(in_memory, tokenizer)
    assert encode(model, ["a"], ["fr 1"], None)[0].tolist() == [3]
    assert len(mw.generate(model, ["a"], max_new_tokens=1)) == 1


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


@pytest.mark.usefixtures("unchecked")
@pytest.mark.skipif(not HOOKED, reason="this TransformerLens has no HookedTransformer")
def test_a_hooked_model_that_reads_both_ways_is_refused():
    model = copy.deepcopy(tiny("llama"))
    model.cfg.attention_dir = "bidirectional"
    for use in (mw.load_model, mw.check_scores, lambda each: mw.generate(each, [torch.tensor([3, 4])])):
        with pytest.raises(ValueError, match="is not causal: what it computes at a token depends on later ones"):
            use(model)


@pytest.mark.usefixtures("unchecked")
def test_a_bridge_that_reads_both_ways_is_refused():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, vocab_size=60)).eval()
    options = {"hf_model": theirs, "tokenizer": named(), "device": "cpu", "dtype": torch.float32}
    model = TransformerBridge.boot_transformers("a model in memory", **options)
    texts = [torch.tensor([3, 4, 5])]
    for use in (mw.load_model, lambda each: mw.detect(each, {"fr": texts}), lambda each: mw.generate(each, texts)):
        with pytest.raises(ValueError, match="is not causal: what it computes at a token depends on later ones"):
            use(model)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.skipif(not HOOKED, reason="4.x computes with the weights that it shows")
def test_a_bridge_that_computes_with_other_weights_than_it_shows_is_refused():
    model = bridge()
    model.enable_compatibility_mode()
    for use in (mw.load_model, mw.check_scores, lambda each: mw.generate(each, ["a"])):
        with pytest.raises(ValueError, match="computes with processed copies of its weights"):
            use(model)
