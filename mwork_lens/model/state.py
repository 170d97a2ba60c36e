"""What a call finds and leaves: a model that no other thread uses, without dropout or autocast; then all as it was.

Hooks and edited weights act on whatever runs the model. So one call at a time uses a model, others wait for it; and
where a ``with`` block of the user's own changes a model, another thread is refused, as none can know when it ends.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .offloaded import modules_of, place_of


class _Use:
    """Which thread uses a model."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.thread: int | None = None
        self.contexts = 0
        """Of that thread, which are open."""
        self.calls = 0
        """How many of them are calls, which end by themselves."""
        self.blocks = 0
        """How many were opened by the user, outside of a call."""


_uses: WeakKeyDictionary[Any, _Use] = WeakKeyDictionary()
_adding = threading.Lock()


def _forget() -> None:
    """In a forked process, which has none of the threads that used models."""
    global _adding
    _adding = threading.Lock()
    _uses.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def _alone(model: Any, kind: str) -> Iterator[_Use]:
    """A use of the model by this thread, counted as one of a kind."""
    require_usual_device()
    with _adding:
        use = _uses.setdefault(model, _Use())
    me = threading.get_ident()
    with use.changed:
        while use.thread not in (None, me):
            if use.blocks:
                raise ValueError(_refusal(model.cfg.model_name))
            use.changed.wait()
        use.thread = me
        use.contexts += 1
        setattr(use, kind, getattr(use, kind) + 1)
        use.changed.notify_all()
    try:
        yield use
    finally:
        with use.changed:
            use.contexts -= 1
            setattr(use, kind, getattr(use, kind) - 1)
            use.thread = me if use.contexts else None
            use.changed.notify_all()


def _refusal(name: str) -> str:
    return (
        f"Another thread has {name} in a `with` block that changes it (ablate, edit_weights, NeuronDelta.applied): "
        "what runs here would be changed too. Run it in that thread, or give each thread a model of its own, e.g. "
        "copy.deepcopy(model)."
    )


def require_usual_device() -> None:
    """A ValueError where tensors would land that belong elsewhere."""
    if (device := torch.get_default_device()).type != "cpu":
        raise ValueError(
            f"New tensors go to {device} by default (torch.set_default_device), but those of mwork_lens belong on the "
            "CPU or where the model is, which may stay there: call it within `with torch.device('cpu'):`."
        )


def _require_uncompiled(modules: Iterable[Any]) -> None:
    """A ValueError for what torch.compile made: it may leave out hooks that were added since, without a word."""
    if any("_orig_mod" in module._modules or vars(module).get("_compiled_call_impl") for module in modules):
        raise ValueError(
            "The model is compiled (torch.compile), and then hooks may be left out without a word: give the model that "
            "is not."
        )


def hooks_of(model: Any) -> frozenset[int]:
    """The numbers that torch gives to hooks, each once in a process: which of them are on the model."""
    return frozenset(
        key for module in modules_of(model) for key in (*module._forward_hooks, *module._forward_pre_hooks)
    )


@contextlib.contextmanager
def changed_by_user(model: Any) -> Iterator[None]:
    """A ``with`` block in which the model computes something else, and only in this thread."""
    _require_uncompiled(modules_of(model))
    use = _uses.get(model)
    within_call = use is not None and use.thread == threading.get_ident() and use.calls
    with _alone(model, "calls" if within_call else "blocks"):
        yield


@contextlib.contextmanager
def settled(model: Any) -> Iterator[None]:
    """A call: waits for those of other threads; training flags, buffers and cached tensors are as before on any exit.

    Within it nothing is random, and neither autocast nor what a process prefers changes the precision.
    """
    with _alone(model, "calls") as use:
        if use.calls > 1:
            yield
            return
        modules = modules_of(model)
        _require_uncompiled(modules)
        before = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
        contents = _contents(before)
        device = place_of(model).type
        try:
            for module in modules:
                if module.training:
                    vars(module)["training"] = False
            with (
                _full_precision(),
                torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING,
            ):
                yield
        finally:
            to_the_end(partial(_restore_modules, before, contents))


_NOTHING = contextlib.nullcontext()
_backends: Any = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))


class _AllProducts:
    """Torch before 2.9 has one setting for all backends."""

    @property
    def fp32_precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @fp32_precision.setter
    def fp32_precision(self, precision: str) -> None:
        torch.set_float32_matmul_precision("highest" if precision == "ieee" else precision)


_PRODUCTS: list[Any] = [each for each in _backends if hasattr(each, "fp32_precision")] or [_AllProducts()]
_preferred: list[tuple[torch.dtype, list[str]]] = []
"""What numbers made of integers are, and products in float32, as the process prefers it; once for each open call."""


def _prefer(dtype: torch.dtype, products: Iterable[str]) -> None:
    torch.set_default_dtype(dtype)
    for each, precision in zip(_PRODUCTS, products, strict=True):
        each.fp32_precision = precision


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Single precision where a model leaves it open; the last of several calls restores what was set.

    Products in float32 are not rounded to TF32 or bfloat16, and what a model computes from positions is float32.
    """
    with _adding:
        before = torch.get_default_dtype(), [each.fp32_precision for each in _PRODUCTS]
        _preferred.append(_preferred[0] if _preferred else before)
        _prefer(torch.float32, ["ieee"] * len(_PRODUCTS))
    try:
        yield
    finally:
        with _adding:
            before = _preferred.pop()
            if not _preferred:
                _prefer(*before)


def _has_tensor(*values: Any) -> bool:
    return any(isinstance(value, Tensor) for value in values)


_LARGEST = 2**16
"""Elements of what a pass may change in place, such as the frequencies of long-rope; masks are larger and stay."""


@torch.inference_mode()
def _contents(modules: Iterable[tuple[Any, dict[str, Any], dict[str, Any]]]) -> list[tuple[Tensor, Tensor]]:
    """Buffers and cached tensors, and copies of them; not of what is part of a weight, which a call may change."""
    held = {
        id(value): value
        for _, attributes, buffers in modules
        for value in (*attributes.values(), *buffers.values())
        if isinstance(value, Tensor) and not value.is_meta and value.numel() <= _LARGEST
    }
    weights = {_memory(each) for module, *_ in modules for each in module._parameters.values() if each is not None}
    return [(tensor, tensor.clone()) for tensor in held.values() if _memory(tensor) not in weights]


def _memory(tensor: Tensor) -> int:
    """Where a tensor and its views are; that of the object where it has no memory of its own, as if it is sparse."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


@torch.inference_mode()
def _restore_contents(contents: Iterable[tuple[Tensor, Tensor]]) -> None:
    """In this mode, in which autograd takes no notice: the caller may have a backward pass to run."""
    for tensor, values in contents:
        if not torch.equal(tensor, values):
            tensor.copy_(values)


def _restore_modules(
    before: Iterable[tuple[Any, dict[str, Any], dict[str, Any]]], contents: Iterable[tuple[Tensor, Tensor]]
) -> None:
    for module, attributes, buffers in before:
        _restore(vars(module), attributes, lambda name, *values: name == "training" or _has_tensor(*values))
        _restore(module._buffers, buffers, lambda *_: True)
    _restore_contents(contents)


def to_the_end(clean_up: Callable[[], Any]) -> None:
    """Run what may run twice; where Ctrl-C interrupts it, once more."""
    try:
        clean_up()
    except KeyboardInterrupt:
        clean_up()
        raise


def _restore(held: dict[str, Any], before: dict[str, Any], restored: Callable[..., bool]) -> None:
    """Of what changed, that which is restored; directly, as a bridge would set it in the module that it wraps."""
    if [*map(id, held.values())] == [*map(id, before.values())]:
        return
    for name in [name for name, value in held.items() if name not in before and restored(name, value)]:
        del held[name]
    for name, value in before.items():
        if held.get(name) is not value and restored(name, value, held.get(name)):
            held[name] = value


class OwnHook:
    """A hook function that refuses passes of other threads, which it would change, and of copies of the model."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name
        self.thread, self.open = threading.get_ident(), True

    def __call__(self, activation: Any, hook: Any = None) -> Any:
        """What the function returns."""
        me = threading.get_ident()
        if not self.open:  # where it was, it has been removed
            raise ValueError(
                f"This is a copy of {self.name} that was made in a `with` block which changed it (ablate), and has "
                "kept that: copy the model outside of the block, or call reset_hooks() on the copy."
            )
        # autograd computes again, for checkpoints, in threads that Python did not start
        if me != self.thread and any(thread.ident == me for thread in threading.enumerate()):
            raise ValueError(_refusal(self.name))
        return self.function(activation, hook=hook)
