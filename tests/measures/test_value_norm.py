"""Values whose head is normed: both forms against a literal ablation in double precision, on made-up activations."""

import os
from dataclasses import replace

import pytest
import torch
from einops import einsum, repeat

from mwork_lens.measures.plnd import value_norm
from mwork_lens.measures.plnd.normed import Normed
from mwork_lens.model import TokenBatch
from mwork_lens.model.architecture import norm_gain
from mwork_lens.model.budget import Budget
from mwork_lens.model.heads import HeadNorm
from mwork_lens.model.post_norms import PostNorm

from ..test_bridge import bridge

WINDOW, EPS = 9, 1e-3
SHAPES = {"odd": (2, 3, 20, 25), "one group": (1, 4, 24, 17), "one head": (3, 1, 8, 9)}
"""Groups, heads of a group, d_head and d_model."""


def made(shape, lengths=(21, 5), outlier=1.0):
    """Values, pattern and weights that float32 holds, two norms, and a batch with positions that do not count."""
    groups, heads, width, d_model = shape
    generator, length = torch.Generator().manual_seed(0), max(lengths)

    def random(*sizes):
        return torch.randn(*sizes, generator=generator).double()

    v, scores = random(len(lengths), length, groups, width), 2 * random(len(lengths), groups * heads, length, length)
    v[..., 1] *= outlier
    seen = torch.ones(length, length).tril().triu(1 - WINDOW).bool()
    pattern = scores.masked_fill(~seen, -torch.inf).softmax(-1).float().double()
    norm = HeadNorm(1 + 0.3 * random(1, width), EPS, across_heads=False, centred=False, after_rotation=False)
    after = PostNorm(1 + 0.5 * random(d_model), ("y",), centred=False, eps=EPS)
    content = torch.arange(length) < torch.tensor(lengths)[:, None]
    batch = TokenBatch(torch.zeros(content.shape, dtype=torch.int64), content, lengths, tuple(range(len(lengths))))
    batch = replace(batch, content=content & (torch.arange(length) % 7 > 0))
    return v, pattern, random(groups, heads, width, d_model) / width**0.5, norm, after, batch


def output_of(v, pattern, w_o, norm):
    """Of all heads: [batch, pos, d_model]."""
    normed = v * (v.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.gain
    by_head = repeat(normed, "batch key group k -> batch key (group head) k", head=w_o.shape[1])
    mixed = einsum(pattern, by_head, "batch head query key, batch key head k -> batch query head k")
    return einsum(mixed, w_o.flatten(0, 1), "batch query head k, head k d_model -> batch query d_model")


def behind(after, y):
    return after.gain * y * (y.square().mean(-1, keepdim=True) + after.eps).rsqrt() if after else y


def ablated(v, pattern, w_o, norm, after, batch):
    """Squared changes of every neuron, one after the other."""
    whole, squares = behind(after, output_of(v, pattern, w_o, norm)), []
    for neuron in range(v.shape[2] * v.shape[3]):
        without = v.flatten(2).clone()
        without[..., neuron] = 0
        change = behind(after, output_of(without.view(v.shape), pattern, w_o, norm)) - whole
        squares.append((change.square().sum(-1) * batch.content).sum(-1))
    return torch.stack(squares, -1)


def as_read(v, pattern, w_o, norm, after, batch, dtype):
    """What a form of ours takes, from numbers of a dtype."""
    wide = torch.promote_types(dtype, torch.float32)
    y, norm = output_of(v, pattern, w_o, norm).to(dtype), replace(norm, gain=norm.gain.to(wide))
    after = replace(after, gain=after.gain.to(wide)) if after else None
    output = Normed.of(after, {"y": y}) if after else None
    return v.to(dtype), pattern.to(dtype), w_o.to(dtype), norm, output, batch


def computed(form, *arguments):
    return form(*as_read(*arguments))


def kernel():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles on this machine")
    from mwork_lens.measures.plnd.batched_values import squares_of_normed

    return squares_of_normed


def relative(ours, truth):
    """The largest error of scores; those below a ten-thousandth of the largest count as that."""
    ours, truth = ours.double().sqrt(), truth.double().sqrt()
    return ((ours - truth).abs() / truth.clamp(min=1e-4 * truth.max())).max().item()


@pytest.mark.parametrize(("shape", "normed"), [("odd", True), ("odd", False), ("one group", True), ("one head", False)])
def test_every_neuron_equals_its_ablation(shape, normed):
    v, pattern, w_o, norm, after, batch = made(SHAPES[shape])
    arguments = v, pattern, w_o, norm, after if normed else None, batch
    truth = ablated(*arguments)
    assert relative(computed(value_norm.squares_by_parts, *arguments, torch.float64), truth) < 1e-10
    ours = computed(kernel(), *arguments, torch.float32)
    assert relative(ours, truth) < 1e-5
    assert relative(ours, computed(value_norm.squares_by_parts, *arguments, torch.float32)) < 1e-5


def test_several_blocks_of_neurons_keys_and_rows_make_up_a_shape(monkeypatch):
    squares, arguments = kernel(), made((1, 2, 20, 9), (11, 3))
    from mwork_lens.measures.plnd import kernels_values

    tiles = {"ROWS": 4, "KEYS": 4, "OTHERS": 8, "NEURONS": 16, "PART": 8, "TOGETHER": 1}
    assert kernels_values.tiles(2, 20).keys() == tiles.keys()
    monkeypatch.setattr(kernels_values, "tiles", lambda heads, width: tiles)
    assert relative(computed(squares, *arguments, torch.float32), ablated(*arguments)) < 1e-5


def test_half_precision_is_read_as_tensor_operations_read_it():
    arguments = made(SHAPES["one head"])
    ours, theirs = (computed(form, *arguments, torch.bfloat16) for form in (kernel(), value_norm.squares_by_parts))
    assert relative(ours, theirs) < 1e-5


def test_a_coordinate_that_is_nearly_all_of_its_head_costs_few_digits():
    """Without it the others grow up to fifty times."""
    arguments = made(SHAPES["one head"], outlier=30)
    assert relative(computed(kernel(), *arguments, torch.float32), ablated(*arguments)) < 1e-4


def test_a_budget_covers_what_more_and_longer_documents_take(monkeypatch):
    """Even if nothing were given back before the end."""
    groups, of_group, width, d_model = shape = (2, 6, 8, 16)
    sizes = {"n_layers": 0, "d_mlp": 0, "d_model": d_model, "heads": (groups * of_group, groups), "d_head": width}
    with_norm, without = (Budget.of_gpu(80e9, normed_values=normed, **sizes) for normed in (True, False))
    squares, took = kernel(), []
    from .launches import Allocated, counted_launches

    for lengths in ((4,), (300,), (200, 200)):
        arguments = as_read(*made(shape, lengths), torch.bfloat16)
        with counted_launches(monkeypatch), Allocated() as allocated:
            squares(*arguments)
        took.append(allocated.total)
    least, longer, more = took
    for bytes_taken, size in ((longer, (1, 300)), (more, (2, 200))):
        needed, too_few = (budget.needed(*size) - budget.needed(1, 4) for budget in (with_norm, without))
        assert too_few < bytes_taken - least < needed


def test_a_norm_without_weights_lies_where_its_layer_does():
    model = bridge("Gemma4")
    norms = [block.attn.v_norm for block in model.blocks]
    model.blocks[1].to("meta")
    assert [norm_gain(model, layer, norm).device.type for layer, norm in enumerate(norms)] == ["cpu", "meta"]
