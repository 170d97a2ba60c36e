"""A half-precision model that computes in float32 for a while, with its own weights, a block at a time."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Swapped = list[tuple[nn.Parameter, Tensor]]


@contextlib.contextmanager
def in_float32(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    embedding: nn.Module,
    unembedding: nn.Module,
    exact: Mapping[str, Tensor] = {},
) -> Iterator[None]:
    """Weights in half precision count as float32 within; afterwards all is exactly as it was.

    A block holds float32 copies only while it runs. Of the embedding what it gives is made float32, since that is the
    same number; the unembedding is left alone, so that no copy of the vocabulary is ever made. ``exact`` has values, by
    the names of parameters, from which those in half precision were rounded.
    """
    blocks, named = list(blocks), dict(model.named_parameters())
    values = {id(named[name]): value for name, value in exact.items() if name in named}
    apart = {id(parameter) for each in (*blocks, unembedding) for parameter in each.parameters()}
    apart |= {id(parameter) for parameter in embedding.parameters() if parameter.ndim > 1}
    running: dict[nn.Module, Swapped] = {}

    def enter(block: nn.Module, _: Any) -> None:
        running[block] = _widen(block.parameters(), values)

    def leave(block: nn.Module, *_: Any) -> None:
        _restore(running.pop(block, []))

    with contextlib.ExitStack() as stack:
        stack.callback(_restore, _widen((each for each in model.parameters() if id(each) not in apart), values))
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(enter).remove)
            stack.callback(block.register_forward_hook(leave, always_call=True).remove)
        stack.callback(embedding.register_forward_hook(_float32_output).remove)
        for module in embedding.modules():  # such as a norm within
            if any(parameter.ndim == 1 for parameter in module.parameters(recurse=False)):
                stack.callback(module.register_forward_pre_hook(_float32_inputs).remove)
        for module in model.modules():
            stack.enter_context(_hooked_transformer_in_float32(module))
        yield


def _float32_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def _float32_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.float() for each in inputs)


def _widen(parameters: Iterable[nn.Parameter], values: Mapping[int, Tensor]) -> Swapped:
    swapped = [(parameter, parameter.data) for parameter in parameters if parameter.dtype.itemsize < 4]
    for parameter, data in swapped:
        parameter.data = values.get(id(parameter), data).to(data.device, torch.float32)
    return swapped


def _restore(swapped: Swapped) -> None:
    for parameter, data in swapped:
        parameter.data = data


@contextlib.contextmanager
def _hooked_transformer_in_float32(module: Any) -> Iterator[None]:
    """HookedTransformer's norms cast to ``cfg.dtype``, and its attention keeps rotary tables of that type."""
    cfg: Any = getattr(module, "cfg", None)
    dtype = getattr(cfg, "dtype", None)
    tables = [getattr(module, name, None) for name in ("rotary_sin", "rotary_cos")]
    if not isinstance(dtype, torch.dtype):
        yield
        return
    cfg.dtype = torch.float32
    if tables[0] is not None:
        module._extend_rotary_embeddings(len(tables[0]))
    try:
        yield
    finally:
        cfg.dtype = dtype
        if tables[0] is not None:
            module.rotary_sin, module.rotary_cos = tables
