"""One block of a model run again on what it was given in a forward pass: in another precision, with neurons at zero."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..measures import Where
from ..model import SITES, HookedModel, hooked, wrapped_model
from ..model.hooks import ForwardHook
from ..model.post_norms import stream_after, stream_before


@dataclass(frozen=True)
class _Tables:
    """What a model's own rotary module was asked, and what it gave."""

    module: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Any


@dataclass(frozen=True)
class Cut:
    """A few positions of a long document, and what flows through a block there."""

    places: Int[Tensor, " place"]
    length: int
    states: Float[Tensor, "1 place d_model"]

    def of(self, value: Any) -> Any:
        """Arguments of a block for these positions only."""
        if isinstance(value, Tensor):
            if value.shape[1:] == (self.length, self.states.shape[-1]):
                return self.states.to(value.dtype)
            for axis, size in enumerate(value.shape):
                value = value.index_select(axis, self.places) if size == self.length else value
            return value
        if isinstance(value, Mapping):
            return {name: self.of(each) for name, each in value.items()}
        return type(value)(map(self.of, value)) if type(value) in (list, tuple) else value


@dataclass(frozen=True)
class Replay:
    """One block with the arguments of one forward pass of one document."""

    model: HookedModel
    layer: int
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    tables: Sequence[_Tables] = field(repr=False)
    cut: Cut | None = None

    @property
    def states(self) -> Float[Tensor, "1 pos d_model"]:
        """The residual stream that the block was given."""
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    def given(self, states: Float[Tensor, "batch pos d_model"]) -> "Replay":
        """The block with other states, of one document or of copies of it; all else is as in the pass."""
        states, copies = states.to(self.states.device), len(states) // len(self.states)
        args = [_of_copies(each, copies) for each in self.args]
        kwargs = {name: _of_copies(each, copies, name) for name, each in self.kwargs.items()}
        if args:
            return replace(self, args=(states, *args[1:]), kwargs=kwargs)
        return replace(self, kwargs={**kwargs, "hidden_states": states})

    def run(
        self, hooks: Sequence[ForwardHook] = (), dtype: torch.dtype | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The block's output; ``dtype`` is that of a :func:`wide_block`."""
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
        if self.cut:
            args, kwargs = self.cut.of(tuple(args)), self.cut.of(dict(kwargs))
        with torch.no_grad(), hooked(self.model, hooks) if hooks else nullcontext():
            output = self.model.blocks[self.layer](*args, **kwargs)
        return _first(output)


def _of_copies(value: Any, copies: int, name: str = "") -> Any:
    """Masks, and what transformers adds to patterns, are of each document; all else holds for any number."""
    of_each = isinstance(value, Tensor) and (value.ndim == 4 or name == "alibi")
    return value.repeat(copies, *[1] * (value.ndim - 1)) if of_each else value


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

    with ExitStack() as handles:
        for layer in layers:
            handle = model.blocks[layer].register_forward_pre_hook(
                partial(_note, replays, model, layer, tables), with_kwargs=True
            )
            handles.callback(handle.remove)
        rotary = getattr(getattr(wrapped_model(model), "base_model", None), "rotary_emb", None)
        if isinstance(rotary, torch.nn.Module):
            noting = partial(_note_tables, tables)
            handles.callback(rotary.register_forward_hook(noting, with_kwargs=True).remove)
        yield replays


def _note(replays: dict[int, Replay], model: HookedModel, layer: int, tables: list[_Tables], *call: Any) -> None:
    _, args, kwargs = call
    replays[layer] = Replay(model, layer, args, kwargs, tables)


def _note_tables(tables: list[_Tables], *call: Any) -> None:
    tables.append(_Tables(*call))


class Ablation:
    """What setting neurons of one block to zero, at every position, changes; a context manager that keeps its hooks.

    The oracle that closed forms are compared with: it knows nothing of norms, scales, rotation or groups of heads.
    """

    def __init__(
        self, replay: Replay, sites: Iterable[str], where: Where = "stream", dtype: torch.dtype | None = None
    ) -> None:
        self._replay, self._dtype = replay, dtype
        self._sites, self._in_structure = tuple(sites), where == "structure"
        self._zeroed: tuple[str, list[int]] = ("", [])
        self._seen: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def __enter__(self) -> "Ablation":
        model, layer, block = self._replay.model, self._replay.layer, self._replay.model.blocks[self._replay.layer]
        hooks: list[ForwardHook] = [(SITES[site].hook_name(layer), partial(self._zero, site)) for site in self._sites]
        watched = {"q": "attn.hook_pattern", "k": "attn.hook_pattern"}
        middle = stream_before(model, layer, "feed_forward")
        if not self._in_structure and middle != stream_before(model, layer, "attention"):
            watched["v"] = middle.removeprefix(f"blocks.{layer}.")
        if not self._in_structure and not (end := stream_after(model, layer)).endswith(".hook_resid_post"):
            watched["mlp"] = end.removeprefix(f"blocks.{layer}.")
        hooks += [(f"blocks.{layer}.{point}", partial(self._keep, site)) for site, point in watched.items()]
        with ExitStack() as stack:
            for site, module in (("v", "attn"), ("mlp", "mlp")) if self._in_structure else ():
                if site in self._sites:
                    handle = getattr(block, module).register_forward_hook(partial(self._keep_output, site))
                    stack.callback(handle.remove)
            stack.enter_context(hooked(model, hooks))
            self._before = self._outputs()
            self._stack = stack.pop_all()  # which an exception before this closes
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def change(self, site: str, neurons: Sequence[int]) -> Float[Tensor, "*head pos key_or_d_model"]:
        """Of the attention pattern for ``q`` and ``k``; else of the stream, or of the structure's own output."""
        self._zeroed = site, list(neurons)
        return self._outputs()[site] - self._before[site]

    def _outputs(self) -> dict[str, Tensor]:
        """What each site can change; where a block has no middle, values are seen after it."""
        self._seen = {}
        output = self._replay.run((), self._dtype)
        return {site: tensor[0] for site, tensor in {"v": output, "mlp": output, **self._seen}.items()}

    def _zero(self, site: str, activation: Tensor, hook: object = None) -> Tensor:
        zeroed, neurons = self._zeroed
        if zeroed != site:
            return activation
        flat = activation.flatten(2).clone()
        flat[..., neurons] = 0
        return flat.view(activation.shape)

    def _keep(self, site: str, activation: Tensor, hook: object = None) -> Tensor:
        self._seen[site] = activation
        return activation

    def _keep_output(self, site: str, module: object, args: object, output: Any) -> None:
        self._seen[site] = _first(output)


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
