"""A model, or a part of it, that computes in a wider precision for a while, with its own weights."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .offloaded import brought_as, is_held, modules_of
from .state import to_the_end


@contextlib.contextmanager
def widened(tensors: Iterable[Tensor], dtype: torch.dtype, exact: Mapping[int, Tensor] = {}) -> Iterator[None]:
    """Weights as copies in a wider dtype, which rounds none of them; the old ones return on any exit.

    ``exact`` has values, by the identity of a tensor, from which it was rounded.
    """
    narrow = (each for each in tensors if each.is_floating_point() and each.dtype.itemsize < dtype.itemsize)
    held = [each for each in narrow if not is_held(each)]
    before = [tensor.data for tensor in held]
    try:
        for tensor, data in zip(held, before, strict=True):
            tensor.data = exact.get(id(tensor), data).to(data.device, dtype)
        yield
    finally:
        to_the_end(partial(_put_back, held, before))


def _put_back(tensors: Iterable[Tensor], before: Iterable[Tensor]) -> None:
    for tensor, data in zip(tensors, before, strict=True):
        tensor.data = data


@contextlib.contextmanager
def wide_block(model: Any, layer: int, dtype: torch.dtype) -> Iterator[None]:
    """One block with all its weights and buffers in a wider dtype, and what it makes of numbers too."""
    block, of_model = model.blocks[layer], model.cfg.dtype
    if any(parameter.is_inference() and not is_held(parameter) for parameter in block.parameters()):
        raise ValueError(
            f"{model.cfg.model_name} was made in inference mode, and its weights cannot be widened to compare closed "
            "forms with ablation: make it outside of torch.inference_mode()."
        )
    tensors = (*block.parameters(), *block.buffers())
    with widened(tensors, dtype), brought_as(dtype, *modules_of(block)), _NumbersIn(dtype):
        try:
            model.cfg.dtype = dtype
            yield
        finally:
            model.cfg.dtype = of_model


class _NumbersIn(TorchFunctionMode):
    """Tensors made of a float are of this dtype, as XGLM makes one of its lowest number.

    It acts on its own thread only; torch's default dtype is that of all threads.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        numbers = {torch.full: args[1:2], torch.tensor: args[:1]}.get(func, ())
        wide = {"dtype": self._dtype} if any(isinstance(number, float) for number in numbers) else {}
        return func(*args, **{**wide, **(kwargs or {})})


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
    running: dict[nn.Module, contextlib.ExitStack] = {}

    def enter(block: nn.Module, _: Any) -> None:
        running[block] = contextlib.ExitStack()
        running[block].enter_context(widened(block.parameters(), torch.float32, values))

    def leave(block: nn.Module, *_: Any) -> None:
        running.pop(block, contextlib.ExitStack()).close()

    with contextlib.ExitStack() as stack:
        others = (each for each in model.parameters() if id(each) not in apart)
        stack.enter_context(widened(others, torch.float32, values))
        stack.enter_context(brought_as(torch.float32, *_but_tables(model, embedding, unembedding)))
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


def _but_tables(model: nn.Module, embedding: nn.Module, unembedding: nn.Module) -> list[nn.Module]:
    """All modules but those with a matrix of the vocabulary."""
    tables = {module for module in modules_of(embedding) if any(each.ndim > 1 for each in module.parameters(False))}
    return [module for module in modules_of(model) if module not in {*tables, *modules_of(unembedding)}]


def _float32_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def _float32_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.float() for each in inputs)


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
