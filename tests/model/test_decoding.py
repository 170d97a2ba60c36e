"""Step-by-step decoding on raw bridges: cached, uncached and in padded batches as transformers writes without cache."""

import warnings

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from mwork_lens.generation import generate
from mwork_lens.model import bridge_on, wrapped_model

from ..decoders.a_to_gr import GPT, GROUPED, SIZES
from ..decoders.h_to_z import IDS, LONG, MPT, OPT, WIDE
from ..decoders.row import GENERATION, Decoder, transformers_model
from ..words import words

SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
BRIDGES = (
    Decoder("LlamaForCausalLM", GROUPED),
    Decoder("LlamaForCausalLM", {**GROUPED, "rope_parameters": LONG}, "long-rope"),
    Decoder("MistralForCausalLM", {**GROUPED, "sliding_window": 5}),
    Decoder("Gemma2ForCausalLM", {**WIDE, **IDS, **SLIDING, "final_logit_softcapping": 3.0}),
    Decoder("Gemma3ForCausalLM", {**WIDE, **IDS, **SLIDING}),
    Decoder("Qwen3ForCausalLM", {**WIDE, **IDS}),
    Decoder("SmolLM3ForCausalLM", {**GROUPED, **IDS, "no_rope_layers": [1, 0]}),
    Decoder("Cohere2ForCausalLM", {**GROUPED, **IDS, **SLIDING}, generations=("4.3",)),
    Decoder("PhiForCausalLM", {**SIZES, **IDS}),
    Decoder("GPT2LMHeadModel", GPT),
    Decoder("GPTJForCausalLM", {**GPT, "rotary_dim": 4}),
    Decoder("GPTNeoXForCausalLM", SIZES),
    Decoder("GPTBigCodeForCausalLM", GPT),
    Decoder("OPTForCausalLM", OPT),
    Decoder("BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50}),
    Decoder("MptForCausalLM", MPT),
    Decoder("FalconForCausalLM", {**SIZES, **IDS, "alibi": False}),
    Decoder("XGLMForCausalLM", {"d_model": 32, "ffn_dim": 20, "num_layers": 2, "attention_heads": 4, "vocab_size": 50}),
)
ROWS = [row for row in BRIDGES if GENERATION in row.generations]
PROMPTS = [torch.randint(3, 50, (n,), generator=torch.Generator().manual_seed(n)) for n in (12, 4, 7, 9)]
NEW = 6


def bridge(row):
    model = bridge_on(transformers_model.__wrapped__(row, torch.float32), words())
    model.cfg.model_name = row.architecture
    return model


def written_by_transformers(row, prompt):
    model = transformers_model(row, torch.float32)
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": False}
    ids = model.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]), **options)
    return tuple(ids[0, len(prompt) :].tolist())


def test_layers_that_share_a_place_in_the_cache_are_written_without_one():
    """A model stacked from copies of a layer, which keep that layer's number: transformers' cache mixes them up."""
    theirs = transformers_model.__wrapped__(Decoder("LlamaForCausalLM", GROUPED), torch.float32)
    theirs.model.layers[1].self_attn.layer_idx = 0
    prompt, expected = PROMPTS[0], []
    with torch.inference_mode():
        for _ in range(NEW):
            ids = torch.cat([prompt, torch.tensor(expected, dtype=torch.long)])
            expected.append(int(theirs(ids[None], use_cache=False).logits[0, -1].argmax()))
    theirs.generation_config.eos_token_id = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The key-value cache of .* does not hold", UserWarning)
        (completion,) = generate(bridge_on(theirs), [prompt], max_new_tokens=NEW)
    assert completion.tokens == tuple(expected)


def up_to(ends, ids):
    return ids[: next((place for place, token in enumerate(ids) if token in ends), NEW)]


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.filterwarnings(
    "ignore:The key-value cache of MptForCausalLM:UserWarning"
)  # empty with TransformerLens 3.9
def test_bridges_write_what_transformers_writes(row):
    """Prompts that end earlier than others, by an end token of the model's own settings, leave the batch."""
    free = [written_by_transformers(row, prompt) for prompt in PROMPTS]
    ends = {0, free[0][2]}
    expected = [up_to(ends, ids) for ids in free]
    assert len(set(expected)) > 1
    model = bridge(row)
    wrapped_model(model).generation_config.eos_token_id = sorted(ends)
    for options in ({}, {"batch_size": 1}, {"use_cache": False}):
        completions = generate(model, PROMPTS, max_new_tokens=NEW, **options)
        assert [completion.tokens for completion in completions] == expected
        assert [c.stopped for c in completions] == ["end" if len(ids) < NEW else "length" for ids in expected]


def test_a_cache_that_stays_empty_is_not_used_and_one_warning_says_so(monkeypatch):
    """As every bridge's with a transformers whose attention writes into another argument than the bridge passes."""
    row = ROWS[0]
    expected = [written_by_transformers(row, prompt) for prompt in PROMPTS]
    monkeypatch.setattr(DynamicLayer, "update", lambda self, keys, values, *_, **__: (keys, values))
    model = bridge(row)
    wrapped_model(model).generation_config.eos_token_id = None
    model.tokenizer = None
    with pytest.warns(UserWarning, match="cache of LlamaForCausalLM does not hold the tokens that were read") as seen:
        assert [c.tokens for c in generate(model, PROMPTS, max_new_tokens=NEW, batch_size=2)] == expected
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [c.tokens for c in generate(model, PROMPTS, max_new_tokens=NEW)] == expected
