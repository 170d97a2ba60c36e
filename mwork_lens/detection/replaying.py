"""One block of a model run again on what it was given in a forward pass: in another precision, with neurons at zero."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..measures import Where
from ..model import SITES, HookedModel, hooked, wrapped_model
from ..model.hooks import ForwardHook


@dataclass(frozen=True)
class _Tables:
    """What a model's own rotary module was asked, and what it gave."""

    module: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Any


@dataclass(frozen=True)
class Replay:
    """One block with the arguments of one forward pass of one document."""

    model: HookedModel
    layer: int
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    tables: Sequence[_Tables] = field(repr=False)

    def run(
        self, hooks: Sequence[ForwardHook] = (), dtype: torch.dtype | None = None
    ) -> Float[Tensor, "1 pos d_model"]:
        """The block's output; ``dtype`` is that of a :func:`widened` block."""
        args, kwargs = self.args, self.kwargs
        if dtype is not None:
            # rotary tables are rounded to the model's dtype as they leave their module: made anew they are not
            anew = {}
            for asked in self.tables:
                given, again = (
                    _tensors(asked.output),
                    asked.module(*_cast(asked.args, dtype), **_cast(asked.kwargs, dtype)),
                )
                anew.update(zip(map(id, given), _tensors(again), strict=True))
            args, kwargs = _cast(args, dtype, anew), _cast(kwargs, dtype, anew)
        with torch.no_grad(), hooked(self.model, hooks):
            output = self.model.blocks[self.layer](*args, **kwargs)
        return output if isinstance(output, Tensor) else output[0]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for each in value for tensor in _tensors(each)] if isinstance(value, list | tuple) else []


def _cast(value: Any, dtype: torch.dtype, anew: Mapping[int, Tensor] | None = None) -> Any:
    """The same with its floats in another dtype; a tensor of ``anew`` is replaced."""
    if isinstance(value, Tensor):
        value = anew.get(id(value), value) if anew else value
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: _cast(each, dtype, anew) for name, each in value.items()}
    return type(value)(_cast(each, dtype, anew) for each in value) if type(value) in (list, tuple) else value


@contextmanager
def caught(model: HookedModel, layers: Sequence[int]) -> Iterator[dict[int, Replay]]:
    """Within it, what the forward pass calls the blocks of these layers with, by layer; of the last such pass."""
    replays: dict[int, Replay] = {}
    tables: list[_Tables] = []

    def note(layer: int) -> Callable[..., None]:
        def noting(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            replays[layer] = Replay(model, layer, args, kwargs, tables)

        return noting

    def note_tables(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tables.append(_Tables(module, args, kwargs, output))

    with ExitStack() as handles:
        for layer in layers:
            handle = model.blocks[layer].register_forward_pre_hook(note(layer), with_kwargs=True)
            handles.callback(handle.remove)
        rotary = getattr(getattr(wrapped_model(model), "base_model", None), "rotary_emb", None)
        if isinstance(rotary, torch.nn.Module):
            handles.callback(rotary.register_forward_hook(note_tables, with_kwargs=True).remove)
        yield replays


@contextmanager
def widened(model: HookedModel, layer: int, dtype: torch.dtype) -> Iterator[None]:
    """One block's weights as copies in a wider dtype, which rounds none of them; the old tensors return on any exit."""
    block = model.blocks[layer]
    held = [x for x in (*block.parameters(), *block.buffers()) if x.is_floating_point() and x.dtype != dtype]
    before, of_model = [x.data for x in held], model.cfg.dtype
    try:
        with torch.no_grad():
            model.cfg.dtype = dtype
            for tensor, data in zip(held, before, strict=True):
                tensor.data = data.to(dtype)
            yield
    finally:
        model.cfg.dtype = of_model
        for tensor, data in zip(held, before, strict=True):
            tensor.data = data


def ablation(
    replay: Replay, site: str, where: Where = "stream", dtype: torch.dtype | None = None
) -> Callable[[Sequence[int]], Float[Tensor, "*head pos key_or_d_model"]]:
    """What setting neurons of a site to zero, at every position, changes: patterns, the stream or a structure's output.

    The oracle that closed forms are compared with: it knows nothing of norms, scales, rotation or grouping.
    """
    model, block = replay.model, f"blocks.{replay.layer}"
    middle = f"{block}.hook_resid_mid"
    watched = {"q": f"{block}.attn.hook_pattern", "k": f"{block}.attn.hook_pattern", "v": middle}.get(site)

    def run(neurons: Sequence[int]) -> Tensor:
        seen: list[Tensor] = []

        def keep(activation: Tensor, hook: object = None) -> Tensor:
            seen.append(activation)
            return activation

        def zero(activation: Tensor, hook: object = None) -> Tensor:
            flat = activation.flatten(2).clone()
            flat[..., list(neurons)] = 0
            return flat.view(activation.shape)

        hooks: list[ForwardHook] = [(SITES[site].hook_name(replay.layer), zero)] if len(neurons) else []
        if site in ("v", "mlp") and where == "structure":
            module = getattr(model.blocks[replay.layer], "attn" if site == "v" else "mlp")
            handle = module.register_forward_hook(lambda _, args, output: keep(output))
            try:
                replay.run(hooks, dtype)
            finally:
                handle.remove()
            (output,) = seen
            return (output if isinstance(output, Tensor) else output[0])[0]
        if watched and watched in model.hook_dict:
            output = replay.run([*hooks, (watched, keep)], dtype)
            return seen[0][0] if seen else output
        return replay.run(hooks, dtype)[0]

    before = run([])
    return lambda neurons: run(neurons) - before
