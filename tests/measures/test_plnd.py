import copy
import os
import subprocess
import sys
from dataclasses import fields, replace
from inspect import unwrap
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from mwork_lens.detection import importance
from mwork_lens.measures.plnd import exact, queries_keys
from mwork_lens.measures.plnd.attention import READS, Attention, Geometry
from mwork_lens.measures.plnd.compiled import is_cpu_float32
from mwork_lens.measures.plnd.published import parallel
from mwork_lens.measures.plnd.qk_dense import changed_rows, exact_squares
from mwork_lens.measures.plnd.queries_keys import compiled_squares, supports
from mwork_lens.measures.plnd.sides import Coefficients, Side
from mwork_lens.neurons import NeuronSpace

from ..oracle import sequential
from ..tiny import FAMILIES, tiny, tokens


@pytest.mark.parametrize("where", ["stream", "structure"])
@pytest.mark.parametrize("family", FAMILIES)
def test_closed_forms_equal_ablation(family, where):
    model, ids = tiny(family), tokens(12)
    scores = importance(model, ids, measure=where)
    space = NeuronSpace.of(model)
    for site, width in space.widths.items():
        if where == "structure" and site in "qk":
            continue
        for layer in range(space.n_layers):
            for neuron in range(0, width, 3):
                truth = sequential(model, ids, layer, site, neuron, where)
                assert scores[site][layer, neuron].item() == pytest.approx(truth, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
def test_a_bound_measure_keeps_no_wide_copy_of_weights(family):
    """Which would be of all layers at once."""
    model = tiny(family, torch.bfloat16)
    cells = [cell.cell_contents for part in exact()(model, 1) for cell in unwrap(part.score).__closure__ or ()]
    kept = [each for held in cells for each in (held if isinstance(held, tuple) else (held,))]
    wide = [each for each in kept if isinstance(each, torch.Tensor) and each.dtype == torch.float32]
    assert wide
    assert max(each.numel() for each in wide) < model.cfg.d_mlp * model.cfg.d_model


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gptj", "neox"])
def test_compiled_sides_equal_tensor_operations(family):
    """Normalised and rotated queries and keys of single precision, compared with those of double precision."""
    model, ids = tiny(family, torch.float32, d_head=40), tokens(45)
    _, cache = model.run_with_cache(ids[None])
    seen = [cache[f"blocks.1.{name}"][0] for name in READS]
    for content in (torch.arange(45) > 0, torch.arange(45) % 7 > 0):
        compiled = Geometry.of(model, 1).attention(*seen, content)
        truth = Geometry.of(model, 1).attention(*(x.double() for x in seen), content)
        assert is_cpu_float32(compiled.queries)
        assert not is_cpu_float32(truth.queries)
        for part in (attrgetter(name) for name in ("queries", "keys", "scores", *SIDES)):
            torch.testing.assert_close(part(compiled).double(), part(truth), rtol=1e-4, atol=1e-6)


SIDES = [f"{side}.{part}" for side in ("query_neurons", "key_neurons") for part in ("shrink", "direct", "paired")]


@pytest.mark.parametrize("loud", [0.1, 1, 8, 64])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3", "gpt2", "gptj", "bloom"])
def test_compiled_loops_equal_tensor_operations(family, loud):
    """Rows with gaps, small changes and such as turn a row around; up to single precision."""
    model, ids = tiny(family, torch.float32, d_head=40), tokens(45)
    _, cache = model.run_with_cache(ids[None])
    seen = [cache[f"blocks.1.{name}"][0] for name in READS]
    attention = Geometry.of(model, 1).attention(*seen, torch.arange(45) % 7 > 0)
    sides = {"query_neurons": attention.query_neurons, "key_neurons": attention.key_neurons}
    louder = {name: replace(side, direct=side.direct * loud) for name, side in sides.items()}
    attention = replace(attention, **louder)
    assert supports(attention)
    for site, compiled in compiled_squares(attention).items():
        truth = exact_squares(in_double(attention), site)
        for squares in (compiled, exact_squares(attention, site)):
            torch.testing.assert_close(squares.double().sqrt(), truth.sqrt(), rtol=1e-4, atol=1e-8)


def test_compiled_loops_leave_pytorch_its_threads():
    """In a new process: numba's OpenMP pool gives PyTorch all cores once, when it begins."""
    code = """
import torch
from mwork_lens.measures.plnd.compiled import threads
with threads():
    print(torch.get_num_threads())
"""
    few = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    assert subprocess.run([sys.executable, "-c", code], env=few, capture_output=True, text=True).stdout == "1\n"


def test_compiled_loops_give_the_same_bits_compiled_anew_and_loaded(tmp_path):
    """In two new processes, the first of which compiles: what resumes in another one must go on to the same bits."""
    code = """
import hashlib, torch
import mwork_lens as mw
from tests.tiny import tiny, tokens
for family in ("llama", "gemma3"):  # without and with norms of queries and keys and after structures
    scores = mw.importance(tiny(family, torch.float32, d_head=40), tokens(40))
    print(*(hashlib.sha256(scores[site].numpy().tobytes()).hexdigest() for site in scores))
"""
    tiny("llama")  # or it is skipped here
    root = str(Path(__file__).parents[2])
    own_cache = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": root}
    run = [sys.executable, "-W", "ignore", "-c", code]
    first, second = (subprocess.run(run, env=own_cache, capture_output=True, text=True).stdout for _ in range(2))
    assert list(tmp_path.rglob("*.nbc"))
    assert first == second != ""


@pytest.mark.parametrize("best", [lambda lift: lift + 0.3, lambda lift: 4.0])
@pytest.mark.parametrize("lift", [1e-4, 5.0, 20.0, 80.0])
def test_compiled_loops_in_hard_rows(best, lift):
    """Without the neuron a broad row gathers on its last key, be it the first before or next to nothing."""
    before = torch.zeros(3000).double()
    before[-1] = best(lift)
    lifted = torch.arange(3000) % 3 < 2
    before[lifted] += lift
    pattern, lifts = before.softmax(-1).float().expand(1, 4, -1), torch.full((1, 1, 4), lift)
    keys, nothing = lifted.float()[None, None], torch.zeros(1, 1, 4)
    plain = Side(1.0, clip=None, norm=None, rotary=None)
    attention = Attention(
        pattern=pattern,
        scores=torch.zeros_like(pattern),
        queries=lifts,
        keys=keys,
        query_neurons=Coefficients(nothing, lifts, nothing),
        key_neurons=Coefficients(*[torch.zeros_like(keys)] * 3),
        geometry=Geometry(1.0, None, None, plain, plain, causal=False, sinks=False),
        positions=None,
        kept=torch.float32,
    )
    truth = exact_squares(in_double(attention), "q")
    torch.testing.assert_close(compiled_squares(attention)["q"].double().sqrt(), truth.sqrt(), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("largest", [1e-6, 1.0, 100.0, 2000.0])
def test_changed_rows_are_those_of_a_softmax(largest, sinks):
    """Also of changes whose exponentials no number could hold, and of keys that a row does not see."""
    scores = torch.randn(3, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    scores[..., 9:11] = -torch.inf
    change = largest * torch.randn(3, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    change[..., 11] *= not sinks  # the last one plays the sink, whose score nothing changes
    seen = slice(0, 12 - sinks)
    before, after = scores.softmax(-1)[..., seen], (scores + change).softmax(-1)[..., seen]
    squares = changed_rows(before, change[..., seen].clone(), sinks=sinks)
    torch.testing.assert_close(squares.sqrt(), (after - before).norm(dim=-1), rtol=1e-8, atol=1e-12)


def wide_scores(family, dtype, rounded=torch.float64, louder=60):
    """A model some of whose attention scores lie hundreds apart, so that single precision gives keys no weight."""
    model = copy.deepcopy(tiny(family, d_head=16))
    generator = torch.Generator().manual_seed(3)
    for name in ("W_Q", "W_K"):
        weights = getattr(model.blocks[0].attn, name)
        loud = 1 + louder * (torch.rand(1, weights.shape[1], weights.shape[2], generator=generator) < 0.1)
        weights.data *= loud.to(weights)
    model.cfg.dtype = dtype
    return model.to(rounded, print_details=False).to(dtype, print_details=False)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("dtype", "louder", "rtol"), [(torch.float32, 60, 2e-3), (torch.float16, 4, 1e-2)])
def test_weights_that_a_softmax_lost_come_back(family, dtype, louder, rtol, compiled, monkeypatch):
    """In single and in half precision a neuron may give back weight to keys whose own became zero."""
    monkeypatch.setattr(queries_keys, "supports", lambda _: compiled)
    model, ids = wide_scores(family, dtype, dtype, louder), tokens(30)
    pattern = model.run_with_cache(ids[None])[1]["blocks.0.attn.hook_pattern"][0]
    assert (pattern == 0)[:, torch.ones(30, 30).tril().bool()].any()
    scores, precise = importance(model, ids, verify=False), wide_scores(family, torch.float64, dtype, louder)
    for site in "qk":
        truth = torch.tensor(
            [sequential(precise, ids, 0, site, neuron, "stream") for neuron in range(scores[site].shape[1])],
            dtype=torch.float64,
        )
        found = scores[site][0].double()
        torch.testing.assert_close(found, truth, rtol=rtol, atol=1e-3 * truth.max().item())


@pytest.mark.parametrize(("dtype", "louder"), [(torch.float32, 60), (torch.float16, 6)])
def test_lost_weights_that_cannot_be_told_are_refused(dtype, louder):
    """Biases between positions are not in the scores, so what a key's weight was cannot be said."""
    with pytest.raises(ValueError, match=r"gave keys no weight at all .* layers="):
        importance(wide_scores("bloom", dtype, dtype, louder), tokens(30), verify=False)


def in_double(attention):
    """The same attention in float64."""

    def wide(part):
        if isinstance(part, torch.Tensor) and part.is_floating_point():
            return part.double()
        return replace(part, **{k: wide(v) for k, v in vars(part).items()}) if isinstance(part, Coefficients) else part

    return replace(attention, **{field.name: wide(getattr(attention, field.name)) for field in fields(attention)})


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gptj"])
def test_papers_form_zeroes_rotated_coordinates(family):
    """A query neuron of the paper is a coordinate after normalisation and rotation; likewise a key neuron."""
    model, ids = tiny(family), tokens(12)
    scores = importance(model, ids, formulation="paper", measure="structure")
    rotated = model.cfg.positional_embedding_type == "rotary"
    for site in "qk":
        hook = f"blocks.1.attn.hook_{'rot_' if rotated else ''}{site}"
        for neuron in range(0, scores[site].shape[1], 5):
            change = pattern_with(model, ids, hook, neuron) - pattern_with(model, ids, hook, None)
            truth = (change.square().sum() / len(ids)).sqrt().item()
            assert scores[site][1, neuron].item() == pytest.approx(truth, rel=1e-8, abs=1e-12)


def pattern_with(model, ids, hook, neuron):
    def zero(activation, hook):
        flat = activation.flatten(2).clone()
        flat[..., neuron] = 0
        return flat.view(activation.shape)

    patterns = []
    hooks = [] if neuron is None else [(hook, zero)]
    hooks.append(("blocks.1.attn.hook_pattern", lambda activation, hook: patterns.append(activation.clone())))
    model.run_with_hooks(ids[None], fwd_hooks=hooks, stop_at_layer=2)
    return patterns[0][0]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_parallel_form_is_the_papers_formulation(family):
    ids = tokens(20)
    fast = importance(tiny(family), ids, formulation="paper", measure="structure")
    whole = importance(tiny(family), ids, formulation=parallel)
    for site, values in whole.items():
        torch.testing.assert_close(fast[site], values, rtol=1e-6, atol=1e-10)
