import inspect
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import mwork_lens as mw
from mwork_lens.generation.completions import StopRule, generate

from ..tiny import FAMILIES, gemma, some_neurons, spelled, tiny, tokens, words

PROMPTS = [tokens(length, seed) for seed, length in enumerate((5, 9, 3, 9, 6))]


def by_hand(model, prompt, steps):
    """The likeliest token of a whole forward pass, again and again."""
    ids = prompt
    for _ in range(steps):
        ids = torch.cat([ids, model(ids[None])[0, -1].argmax()[None]])
    return tuple(ids[len(prompt) :].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_under_ablation_with_and_without_cache_and_padding(family):
    """Greedy completions are those of plain forward passes, alone or batched, cached or not, hooked or edited."""
    model = tiny(family)
    neurons = some_neurons(model)
    plain = [by_hand(model, prompt, 5) for prompt in PROMPTS]
    with mw.ablate(model, neurons):
        expected = [by_hand(model, prompt, 5) for prompt in PROMPTS]
        for batch_size in (1, 5):
            for use_cache in (True, False):
                found = generate(model, PROMPTS, max_new_tokens=5, batch_size=batch_size, use_cache=use_cache)
                assert [completion.tokens for completion in found] == expected
    with mw.edit_weights(model, neurons):
        assert [c.tokens for c in generate(model, PROMPTS, max_new_tokens=5)] == expected
    assert [c.tokens for c in generate(model, PROMPTS, max_new_tokens=5)] == plain
    assert plain != expected


def test_prompts_are_a_list():
    model, generate_any = spelled("llama"), inspect.unwrap(generate)
    expected = generate_any(model, ["a b", "c"], max_new_tokens=2)
    for prompts in (pd.Series(["a b", "c"]), np.array(["a b", "c"]), ("a b", "c")):
        assert generate_any(model, prompts, max_new_tokens=2) == expected
    for prompts in ("a b", {"en": ["a b"]}, tokens(3), None):
        with pytest.raises(ValueError, match=f"prompts must be a list of documents, not {type(prompts).__name__}"):
            generate_any(model, prompts, max_new_tokens=2)


@pytest.mark.parametrize("mode", ["mean", "set", "scale", "resample"])
def test_every_mode_generates_alike_with_and_without_cache(mode):
    model = tiny("gemma3")
    corpus = {"fr": PROMPTS[:3], "zh": PROMPTS[3:]}
    values = (
        mw.collect_samples(model, corpus) if mode == "resample" else mw.collect_means(model, corpus, progress=False)
    )
    options = {"factor": 3.0} if mode == "scale" else {"values": values}
    options |= {"language": "zh"} if mode in ("set", "resample") else {}
    with mw.ablate(model, some_neurons(model), mode, **options):
        cached, whole = (generate(model, PROMPTS, max_new_tokens=8, use_cache=cache) for cache in (True, False))
    assert cached == whole
    assert cached != generate(model, PROMPTS, max_new_tokens=8)


def test_sampling_depends_on_the_seed_and_not_on_the_batch():
    model = tiny("llama")
    options = {"max_new_tokens": 6, "temperature": 1.0}
    first = generate(model, PROMPTS, seed=1, **options)
    assert first == generate(model, PROMPTS, seed=1, batch_size=2, **options)
    assert first != generate(model, PROMPTS, seed=2, **options)
    assert first != generate(model, PROMPTS, seed=1, max_new_tokens=6)
    narrow = generate(model, PROMPTS, seed=1, max_new_tokens=6, temperature=1.0, top_p=1e-9)
    assert narrow == generate(model, PROMPTS, max_new_tokens=6)


def test_sampled_frequencies_are_the_models_probabilities():
    model, prompt = tiny("gpt2"), tokens(4)
    drawn = generate(model, [prompt] * 2000, max_new_tokens=1, temperature=2.0, batch_size=500)
    expected = (model(prompt[None])[0, -1] / 2).softmax(-1)
    found = torch.bincount(torch.tensor([c.tokens[0] for c in drawn]), minlength=50) / 2000
    assert (found - expected).abs().max() < 4 * (expected.max() / 2000) ** 0.5


@pytest.fixture(name="spelled")
def spelled_llama():
    return spelled("llama")


def test_completions_end_at_the_end_token_and_before_stop_strings(spelled):
    spelled.unembed.b_U.data[:3] = -1e9
    (free,) = generate(spelled, ["a b c"], max_new_tokens=6)
    assert (free.stopped, len(free.tokens)) == ("length", 6)
    assert len(free.text.split()) == 6
    third = free.text.split()[2]
    (cut,) = generate(spelled, ["a b c"], max_new_tokens=6, stop=[third])
    assert cut.stopped == "stop"
    assert cut.text == free.text[: free.text.index(third)]
    assert free.tokens[: len(cut.tokens)] == cut.tokens
    spelled.unembed.b_U.data[0] = 1e9
    (ended,) = generate(spelled, ["a b c"], max_new_tokens=6)
    assert (ended.text, ended.tokens, ended.stopped) == ("", (), "end")


def test_a_completion_that_begins_on_a_new_line_is_not_over():
    ends = StopRule(words(), ("\n", "b"), frozenset(), 1)
    assert [ends.cut(text) for text in ("\n\na c\nd", "a\n", " \n", "\n b", "")] == ["\n\na c", "a", " \n", "\n ", ""]
    assert StopRule(words(), ("\nQuestion",), frozenset(), 1).cut("\nQuestion: b") == ""


def test_only_the_last_position_is_unembedded():
    model, rows = tiny("llama"), []
    handle = model.ln_final.register_forward_hook(lambda module, given, out: rows.append(out.shape[:2].numel()))
    try:
        generate(model, PROMPTS, max_new_tokens=4)
    finally:
        handle.remove()
    assert rows == [5] * 4


def test_finished_prompts_are_let_go_and_change_nothing_for_the_others(spelled):
    """Each step reads those that are still going; what they become is what they become alone."""
    prompts, rows = ["a b c", "d", "e f a b", "h g", "c c", "b d g"], []
    options = {"max_new_tokens": 9, "stop": ["h"], "temperature": 2.0}
    alone = generate(spelled, prompts, batch_size=1, **options)
    handle = spelled.ln_final.register_forward_hook(lambda module, given, out: rows.append(out.shape[:2].numel()))
    try:
        cached = generate(spelled, prompts, **options)
    finally:
        handle.remove()
    assert cached == alone == generate(spelled, prompts, use_cache=False, **options)
    read = [len(completion.tokens) + (completion.stopped == "end") for completion in cached]
    assert len(set(read)) > 2
    assert rows == [sum(steps > step for steps in read) for step in range(max(read))]


def test_raw_bridges_generate_under_ablation():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mw.load_model(gemma(), tokenizer=words(), device="cpu")
    prompts = [prompt % 11 for prompt in PROMPTS]
    with mw.ablate(model, some_neurons(model, 0.6)):
        expected = [by_hand(model, prompt, 6) for prompt in prompts]
        cached, whole = (generate(model, prompts, max_new_tokens=6, use_cache=cache) for cache in (True, False))
        sampled, alone = (
            generate(model, prompts, max_new_tokens=20, temperature=2.0, batch_size=size) for size in (5, 1)
        )
    assert sampled == alone
    assert len({len(completion.tokens) for completion in sampled}) > 2
    ends = [tokens[: tokens.index(0)] if 0 in tokens else tokens for tokens in expected]
    assert [c.tokens for c in cached] == ends
    assert cached == whole


def test_in_double_precision_prompts_of_other_lengths_change_nothing_on_a_bridge():
    """Masks of padding would be infinite there, and all logits of a padded prompt NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mw.load_model(gemma(), tokenizer=words(), device="cpu", dtype=torch.float64)
    prompts = [prompt % 11 for prompt in PROMPTS]
    together, alone = (generate(model, prompts, max_new_tokens=5, batch_size=size) for size in (5, 1))
    assert together == alone


def test_bad_options_are_refused():
    model = tiny("llama")
    for message, options in [
        ("max_new_tokens=0", {"max_new_tokens": 0}),
        ("temperature=-1", {"temperature": -1.0}),
        ("temperature=nan", {"temperature": float("nan")}),
        ("prompt 1 has 9 tokens; with max_new_tokens=56", {"max_new_tokens": 56}),
        ("need a tokenizer", {"stop": ["x"]}),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(model, PROMPTS, **options)
    assert generate(model, []) == []
