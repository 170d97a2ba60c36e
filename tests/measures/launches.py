"""What a device would be asked for: operations that are no views, launches of kernels, and where a program waits."""

from collections import Counter
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mwork_lens.measures.plnd import kernels, kernels_rows, kernels_values

FREE = ("aten::empty", "aten::empty_strided", "aten::new_empty", "aten::detach", "aten::promote_types")
WAITS = {"cpu", "numpy", "tolist", "item", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__"}
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2")
KERNELS = (
    (kernels, "turn"),
    (kernels, "sums_after_norm"),
    (kernels_rows, "squares_of_rows"),
    (kernels_values, "squares_of_values"),
)


def tensors(values):
    """Those among arguments or results, which may be lists."""
    for value in values if isinstance(values, list | tuple) else [values]:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def place(tensor):
    return tensor.untyped_storage().data_ptr()


class _Counting(TorchDispatchMode):
    def __init__(self, names):
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        view = isinstance(out, torch.Tensor) and place(out) in set(map(place, tensors(args)))
        name = function._schema.name
        if name not in FREE and (function._schema.is_mutable or not view):
            self.names[name] += 1
        return out


class Allocated(TorchDispatchMode):
    """Bytes of new tensors."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        old = {place(tensor) for tensor in tensors(args)}
        self.total += sum(tensor.nbytes for tensor in tensors(out) if place(tensor) not in old)
        return out


class _Kernel:
    """A kernel whose launch counts as one and is left out: what it would write decides nothing that is launched."""

    def __init__(self, kernel, names):
        self.kernel, self.names = kernel, names

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.names[self.kernel.fn.__name__] += 1

        return launch


@contextmanager
def counted_launches(monkeypatch):
    """Within it, operations by name."""
    names = Counter()
    with monkeypatch.context() as patched, _Counting(names):
        for module, name in KERNELS:
            patched.setattr(module, name, _Kernel(getattr(module, name), names))
        yield names


class _Host:
    """Tensors that were copied from the device, and what was computed from these alone: nothing waits for them."""

    def __init__(self, names):
        self.names, self.kept = names, {}

    def add(self, out):
        self.kept |= {place(tensor): tensor for tensor in tensors(out)}

    def has(self, args):
        return all(place(tensor) in self.kept for tensor in tensors(args))


class _Methods(TorchFunctionMode):
    def __init__(self, host):
        super().__init__()
        self.host = host

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in WAITS and not self.host.has(args):
            self.host.names[name] += 1
        out = function(*args, **(kwargs or {}))
        if name == "cpu":
            self.host.add(out)
        return out


class _Operations(TorchDispatchMode):
    def __init__(self, host):
        super().__init__()
        self.host = host

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, host = function._schema.name, bool([*tensors(args)]) and self.host.has(args)
        masked = name.startswith("aten::index") and any(tensor.dtype == torch.bool for tensor in tensors(args[1:2]))
        if not host and (masked or name in READS):
            self.host.names[name] += 1
        out = function(*args, **(kwargs or {}))
        if host:
            self.host.add(out)
        return out


@contextmanager
def counted(monkeypatch):
    """Within it, by name: launches, and how often the CPU would wait for a device that all tensors were on."""
    waits = Counter()
    with counted_launches(monkeypatch) as launches, _Methods(host := _Host(waits)), _Operations(host):
        yield launches, waits
