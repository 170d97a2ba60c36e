"""A hooked model compared with the transformers model that it comes from, beyond every length where that changes."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .architecture import NOT_CAUSAL, HookedModel, config_boundaries, device_of, dtype_of, original
from .checkpoints import first_line, lacks_memory, quiet_transformers
from .forward import run_blocks
from .offloaded import place_of
from .state import settled
from .unembedding import all_logits, final_norm
from .wide_weights import in_float32

HALF_TOLERANCE, _FLOAT_TOLERANCE = 0.1, 2e-4
"""Root mean square difference of logits, in their standard deviations. Measured on Gemma 3 270M: two right readings in
bfloat16 differ by up to 0.054; a wrong base of rotary angles changes logits by 0.13 or more, an attention scale that is
10 % off by 0.08, which only float32 can tell."""
_STATE_TOLERANCE = 5e-4
"""Of the states that the unembedding reads, in float32: the difference at the worst position, in its length there."""
_CAUSAL_TOLERANCE = 1e-5
"""The same for other tokens behind: the same operations, so that they hardly differ."""
_TABLE_TOLERANCE, _ANGLE_TOLERANCE = 1e-3, 3e-7
"""Of sines and cosines of rotary angles, and what float32 adds to that at each further position."""
FARTHEST = 1024
"""Lengths up to here are computed; those above are compared by masks and rotary tables."""
_SHORT, _PADDED, _MARGIN = 12, 7, 8
"""Tokens of the short document, of its beginning that is padded to that length, and of the long one past a boundary."""


class Differs(Exception):
    """By how much a hooked model differs from the one that it comes from."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What a transformers model computes from token ids drawn with a seed, before anything is made of it."""

    short: Int[Tensor, "2 pos"]
    """A document, and its beginning with padding on the right."""
    logits: Float[Tensor, "2 pos token"]
    long: Int[Tensor, "1 long_pos"]
    """A document that is longer than every boundary up to FARTHEST."""
    states: Float[Tensor, "long_pos d_model"]
    """What the unembedding reads of it, with the weights as float32."""


@torch.inference_mode()
def observe(theirs: Any, title: str) -> Reference:
    """Run a transformers model; a ValueError if it is not finite, or not causal."""
    if theirs.get_output_embeddings() is None:
        raise ValueError(
            f"{title} ({type(theirs).__name__}) has no unembedding, and so no next token: give its causal language "
            "model (of a class such as LlamaForCausalLM)."
        )
    config = theirs.config.get_text_config()
    stacks, said = _stacks(theirs), getattr(config, "num_hidden_layers", 0)
    if len(stacks) == 1 and (layers := len(stacks[0])) < said:
        raise ValueError(f"{title} has {layers} layers where its config.num_hidden_layers says {said}: set that.")
    short, long = _drawn(config, place_of(theirs))
    try:
        with settled(theirs), quiet_transformers():
            logits = theirs(short, use_cache=False).logits
            with _float32(theirs):
                states = _unembedded(theirs, long)[0]
                whole, begun = _unembedded(theirs, short)[:, :_PADDED]
    except (RuntimeError, ValueError, AttributeError, TypeError, LookupError) as error:
        if lacks_memory(error):
            raise
        raise ValueError(
            f"{title} does not run as a decoder of text in {theirs.dtype}: {first_line(error)}."
        ) from error
    if not (torch.isfinite(logits).all() and torch.isfinite(states).all()):
        raise ValueError(
            f"What {title} computes is not finite: its weights hold NaN or infinite values, or {theirs.dtype} "
            "overflows."
        )
    if not _farthest(begun, whole) <= _CAUSAL_TOLERANCE:
        raise ValueError(f"{title} ({type(theirs).__name__}) {NOT_CAUSAL}")
    return Reference(short, logits, long, states)


def _unembedded(theirs: Any, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    """What the unembedding reads; it is computed at one position only."""
    unembedding, read = theirs.get_output_embeddings(), []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        read.append(inputs[0])
        return (inputs[0][:, -1:].to(next(module.parameters()).dtype),)

    handle = unembedding.register_forward_pre_hook(keep)
    try:
        theirs(ids, use_cache=False)
    finally:
        handle.remove()
    return read[0]


def _drawn(config: Any, device: torch.device) -> tuple[Int[Tensor, "2 pos"], Int[Tensor, "1 long_pos"]]:
    near = [length for length in config_boundaries(config) if length <= FARTHEST]
    context = context_of(config) or FARTHEST
    generator = torch.Generator().manual_seed(0)
    length = min(max(near, default=2 * _SHORT) + _MARGIN, context)
    ids = torch.randint(config.vocab_size, (length + _SHORT,), generator=generator).to(device)
    # some families count positions from the padding
    ids[ids == getattr(config, "pad_token_id", None)] = 1 % config.vocab_size
    short = ids[length:][: min(_SHORT, context)].repeat(2, 1)
    short[1, _PADDED:] = 0
    return short, ids[None, :length]


def context_of(config: Any) -> int | None:
    """The number of tokens that a transformers configuration gives its model; None where it says nothing."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
    lengths = (getattr(config, name, None) for name in names)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


@torch.inference_mode()
def require_same(model: HookedModel, reference: Reference, exact: Mapping[str, Tensor] = {}) -> None:
    """Raise Differs unless ``model`` computes what the reference says; ``exact``: weights before they were rounded."""
    short, long = (ids.to(device_of(model)) for ids in (reference.short, reference.long))
    tolerance = _tolerance(dtype_of(model))
    with settled(model), quiet_transformers():
        states = _stream(model, short)
        for row, end in enumerate((short.shape[1], _PADDED)):
            ours, theirs = all_logits(model, states[row, :end]), reference.logits[row, :end]
            _require(logit_distance(ours, theirs), tolerance, "its logits would differ by {} standard deviations")
        with _float32(model, exact):
            ours = final_norm(model, _stream(model, long)[0])
    words = "the states before its unembedding would differ by {} of their length on " + f"{long.shape[1]} tokens"
    _require(_farthest(ours, reference.states), _STATE_TOLERANCE, words)


def _stream(model: HookedModel, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    try:
        return run_blocks(model, ids)
    except ValueError as error:  # not finite, or not shown, where transformers' is
        raise Differs(f"it does not run in {dtype_of(model)} ({first_line(error)})") from error


def _require(difference: float, tolerance: float, words: str) -> None:
    if not difference <= tolerance:  # nor NaN
        raise Differs(words.format(f"{difference:.2g}"))


def _tolerance(dtype: torch.dtype) -> float:
    return _FLOAT_TOLERANCE if dtype.itemsize >= 4 else HALF_TOLERANCE


def _farthest(ours: Float[Tensor, "pos d_model"], theirs: Float[Tensor, "pos d_model"]) -> float:
    """The largest difference at a position, in the length of ``theirs`` there."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max().item()


def logit_distance(ours: Float[Tensor, "pos token"], theirs: Float[Tensor, "pos token"]) -> float:
    """Root mean square difference, in standard deviations of ``theirs``."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return ((ours - theirs).square().mean().sqrt() / theirs.std()).item()


@contextlib.contextmanager
def _float32(model: Any, exact: Mapping[str, Tensor] = {}) -> Iterator[None]:
    """A model in half precision computes in float32; any other as it does."""
    theirs = getattr(model, "original_model", model)
    if theirs is model and hasattr(model, "blocks"):  # a HookedTransformer
        blocks, embedding, unembedding = model.blocks, model.embed, model.unembed
    else:
        blocks = _blocks(theirs)
        embedding, unembedding = theirs.get_input_embeddings(), theirs.get_output_embeddings()
    if next(model.parameters()).dtype.itemsize >= 4:
        yield
        return
    with in_float32(model, blocks, embedding, unembedding, exact):
        yield


def _blocks(theirs: nn.Module) -> nn.ModuleList:
    """The longest stack: the decoder's layers."""
    return max(_stacks(theirs), key=len)


def _stacks(theirs: nn.Module) -> list[nn.ModuleList]:
    """Lists of modules that are in no other one."""
    lists = [module for module in theirs.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(module) for each in lists for module in each.modules() if module is not each}
    return [each for each in lists if id(each) not in inner]


def require_same_far(model: Any, theirs: Any) -> None:
    """Raise Differs where masks or rotary tables of a HookedTransformer differ at lengths that are not computed."""
    config = theirs.config.get_text_config()
    windows = _windows(config, len(model.blocks))
    for layer, (block, window) in enumerate(zip(model.blocks, windows, strict=True)):
        ours = model.cfg.window_size if block.attn.attn_type == "local" else None
        if ours != window and min(ours or model.cfg.n_ctx, window or model.cfg.n_ctx) < model.cfg.n_ctx:
            raise Differs(f"layer {layer} would attend to {ours or 'all'} tokens, not to {window or 'all'}")
    rotary = original(getattr(theirs.base_model, "rotary_emb", None))
    if rotary is not None and hasattr(model.blocks[0].attn, "rotary_sin"):
        _require_same_rotation(model, config, rotary)


def _windows(config: Any, n_layers: int) -> list[int | None]:
    """How many tokens each layer reads at most, by a transformers configuration."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if not kinds:
        return [getattr(config, "sliding_window", None)] * n_layers
    names = {"sliding_attention": "sliding_window", "local": "window_size"}
    return [getattr(config, names[kind], None) if kind in names else None for kind in kinds]


def _require_same_rotation(model: Any, config: Any, rotary: Any) -> None:
    """Positions up to the context, a few of them, in sequences as long as each boundary above FARTHEST and beyond."""
    context, kinds = model.cfg.n_ctx, getattr(config, "layer_types", None)
    far = [length for length in config_boundaries(config) if FARTHEST < length < context]
    lengths = sorted({context, *far, *(length + 1 for length in far)})
    by_layer = "layer_type" in inspect.signature(rotary.forward).parameters
    tables: dict[Any, tuple[Tensor, Tensor]] = {}
    for layer, block in enumerate(model.blocks):
        kind = {"layer_type": kinds[layer]} if by_layer and kinds else {}
        base = block.attn._rotary_base()
        key = (base, *kind.values())
        if key in tables:
            continue
        sine, cosine = block.attn.calculate_sin_cos_rotary(
            model.cfg.rotary_dim, context, base=base, dtype=torch.float32
        )
        tables[key] = sine, cosine
        for length in lengths:
            positions = torch.linspace(0, length - 1, 64).round().long()
            theirs = rotary(torch.zeros(1, device=device_of(model)), positions[None].to(device_of(model)), **kind)
            for ours, table in zip((cosine, sine), theirs, strict=True):
                if 2 * table.shape[-1] == ours.shape[-1]:  # some families keep one angle for both of a pair
                    table = torch.cat([table, table], -1)
                words = "its rotary angles would differ by {} times the tolerance in texts of " + f"{length} tokens"
                _require(_apart(ours[positions].cpu(), table[0].float().cpu(), positions), 1.0, words)


def _apart(ours: Float[Tensor, "pos d"], theirs: Float[Tensor, "pos other_d"], positions: Int[Tensor, " pos"]) -> float:
    """The largest difference of two tables, in what float32 allows there."""
    if ours.shape != theirs.shape:
        return float("inf")
    return ((ours - theirs).abs().amax(-1) / (_TABLE_TOLERANCE + _ANGLE_TOLERANCE * positions)).max().item()
