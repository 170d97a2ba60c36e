import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mwork_lens.detection import importance
from mwork_lens.model.decoding import decoder
from mwork_lens.model.forward import Encoded, Running, batches, encode, run_blocks, stream

from ..tiny import tiny, tokens

KINDS = ["llama", "gemma3", "gpt2"]
LENGTHS = [3, 17, 8, 1, 30, 2]


def made_up_documents(lengths):
    return [tokens(length, seed=i).clamp(min=3) for i, length in enumerate(lengths)]


def encoded(model, documents, max_tokens=512):
    return encode(model, documents, [f"fr/made-up/{i}" for i in range(len(documents))], max_tokens)


def with_tokenizer(family):
    """The model with a word-level tokenizer that pads on the left: ``<pad> <s> </s> w3 w4 ...``."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 50)}}
    split = Tokenizer(WordLevel(words))
    split.pre_tokenizer = WhitespaceSplit()
    split.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=split, name_or_path="words", add_bos_token=True, **special)
    model = copy.deepcopy(tiny(family))
    model.set_tokenizer(tokenizer, default_padding_side="left")
    return model


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("make", [tiny, with_tokenizer])
@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_padded_batches_equal_one_document_at_a_time(family, make, batch_size):
    model, documents = make(family), made_up_documents(LENGTHS)
    documents[1][:2] = 0  # ids are used as given, even the padding's at the start
    done = set()
    for batch in batches(model, encoded(model, documents), batch_size):
        stream = run_blocks(model, batch.tokens)
        for i, (row, length) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
            assert length == LENGTHS[row]
            alone = tiny(family)(documents[row][None], stop_at_layer=2)[0]
            torch.testing.assert_close(stream[i, :length], alone, rtol=1e-10, atol=1e-12)
            done.add(row)
    assert done == set(range(len(LENGTHS)))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.none() | st.integers(1, 9))
def test_every_document_is_in_one_batch_with_its_tokens(lengths, batch_size):
    model, documents = tiny("llama"), made_up_documents(lengths)
    rows = []
    for batch in batches(model, encoded(model, documents), batch_size):
        rows += batch.rows
        assert batch.tokens.numel() <= 1024
        assert len(batch.rows) <= (batch_size or len(lengths))
        assert batch.tokens.shape[1] == max(batch.lengths)
        assert batch.content.sum(-1).tolist() == list(batch.lengths)
        for i, row in enumerate(batch.rows):
            assert torch.equal(batch.tokens[i][batch.content[i]], documents[row])
    assert sorted(rows) == list(range(len(lengths)))


def test_special_tokens_and_padding_are_no_content():
    model = with_tokenizer("llama")
    documents = encoded(model, ["w7 </s> w8 w9", "w5"])
    assert [ids.tolist() for ids in documents] == [[1, 7, 2, 8, 9], [1, 5]]
    (batch,) = batches(model, documents)
    assert batch.rows == (1, 0)
    assert batch.content.int().tolist() == [[0, 1, 0, 0, 0], [0, 1, 0, 1, 1]]
    with pytest.raises(ValueError, match="fr/made-up/1 has no token besides special ones"):
        encoded(model, ["w7", "</s>"])


@pytest.mark.parametrize("bad", [-1, 50])
def test_ids_outside_the_vocabulary_are_refused(bad):
    documents = [tokens(4), torch.tensor([3, bad, 4])]
    with pytest.raises(ValueError, match="fr/made-up/1 has token ids outside 0 to 49"):
        encoded(tiny("llama"), documents)


@pytest.mark.parametrize("document", [torch.zeros(2, 3, dtype=torch.long), torch.tensor([]), torch.tensor([1.5, 2.5])])
def test_a_tensor_that_is_no_list_of_ids_is_refused(document):
    with pytest.raises(ValueError, match=rf"given is a tensor of shape \({len(document)}, ?\d?\)"):
        importance(tiny("llama"), document)


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="tiny-llama has no tokenizer"):
        encoded(tiny("llama"), ["Bonjour"])


@pytest.mark.parametrize(("max_tokens", "limit"), [(10, 10), (512, 64)])
def test_long_documents_are_cut_with_a_warning(max_tokens, limit):
    documents = made_up_documents([5, 70, 80, 10])
    with pytest.warns(UserWarning, match="documents are longer than") as caught:
        found = encoded(tiny("llama"), documents, max_tokens)
    assert str(caught[0].message) == (
        f"2 of 4 documents are longer than {limit} tokens and were cut there "
        f"(the longest, fr/made-up/2, has 80; max_tokens={max_tokens}, the model's context 64)."
    )
    for ids, document in zip(found, documents, strict=True):
        assert torch.equal(ids, document[:limit])


def test_options_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="max_tokens=1"):
        encoded(tiny("llama"), [tokens(4)], max_tokens=1)
    with pytest.raises(ValueError, match="batch_size=0"):
        next(batches(tiny("llama"), [tokens(4)], batch_size=0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_give_a_clear_error(value):
    model = copy.deepcopy(tiny("llama"))
    model.blocks[1].mlp.W_out.data[3, 4] = value
    with pytest.raises(ValueError, match=r"residual stream of tiny-llama is not finite: .*NaN"):
        run_blocks(model, tokens(5)[None])


CORPUS = {
    "fr": [tokens(length, seed) for seed, length in enumerate(LENGTHS)],
    "zh": [tokens(length, seed + 50) for seed, length in enumerate((40, 64, 5))],
}


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_a_plan_holds_the_batches_of_every_language_in_turn(batch_size):
    model = tiny("llama")
    encoded = Encoded.of(model, CORPUS)
    plan = encoded.plan(batch_size)
    alone = [batch for documents in CORPUS.values() for batch in batches(model, documents, batch_size)]
    assert [batch.rows for batch in plan] == [batch.rows for batch in alone]
    assert [batch.language for batch in plan] == [language for language, _ in plan.groups]
    assert [batch.number for batch in plan] == list(range(len(plan)))
    for planned, batch in zip(plan, alone, strict=True):
        assert torch.equal(planned.tokens, batch.tokens)
        assert torch.equal(planned.content, batch.content)
    assert encoded.documents == {"fr": 6, "zh": 3}


def test_a_plan_is_known_by_its_documents_and_batches():
    model = tiny("llama")
    plan = Encoded.of(model, CORPUS).plan()
    assert plan.hash == Encoded.of(tiny("gpt2"), CORPUS).plan().hash
    others = [
        Encoded.of(model, CORPUS).plan(2),
        Encoded.of(model, {**CORPUS, "zh": CORPUS["zh"][:2]}).plan(),
        Encoded.of(model, {"zh": CORPUS["zh"], "fr": CORPUS["fr"]}).plan(),
        Encoded.of(model, {**CORPUS, "zh": CORPUS["zh"][::-1]}).plan(),
    ]
    assert len({plan.hash, *(other.hash for other in others)}) == 5


def test_a_stream_gives_each_batch_with_what_the_blocks_made_of_it():
    model, running, seen = tiny("gemma3"), Running(), []
    plan = Encoded.of(model, CORPUS).plan(2)

    def look(activation, hook):
        seen.append((running.batch.number, activation))
        return activation

    for batch, states in stream(model, plan, [("blocks.1.hook_resid_post", look)], running):
        assert seen[-1][0] == batch.number
        assert torch.equal(seen[-1][1], states)
        assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert [number for number, _ in seen] == list(range(len(plan)))


def test_the_running_batch_goes_on_with_the_layers():
    """To the next device, where a model lies over several."""
    running, batch = Running(), Encoded.of(tiny("llama"), CORPUS).plan(2).batch(0)
    running.batch = batch
    assert running.beside(torch.empty(1)) is batch
    there = running.beside(torch.empty(1, device="meta"))
    assert {each.device.type for each in (there.tokens, there.content, there.ends, there.scored)} == {"meta"}
    assert running.beside(torch.empty(2, device="meta")) is there


def test_an_unknown_hook_point_is_refused():
    with pytest.raises(ValueError, match=r"tiny-llama has no hook point 'blocks.9.hook_q'"):
        next(stream(tiny("llama"), batches(tiny("llama"), [tokens(4)]), [("blocks.9.hook_q", lambda a, hook: a)]))


@torch.inference_mode()
def test_what_a_model_has_read_before_moves_no_bit():
    """BLOOM's blocks keep the table of ALiBi for the longest text yet, whose sums round otherwise."""
    model, ids = copy.deepcopy(tiny("bloom", torch.float32)), tokens(12)[None]

    def passes():
        reading = decoder(model, 1)
        logits = [reading.advance(part, torch.ones_like(part)) for part in (ids[:, :9], ids[:, 9:])]
        return run_blocks(model, ids), *logits

    before = passes()
    model(tokens(60)[None])
    assert all(map(torch.equal, before, passes()))
