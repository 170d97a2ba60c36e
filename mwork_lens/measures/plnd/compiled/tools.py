"""How this package compiles loops, and on how many threads they run."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, no_type_check

import numba
import torch
from llvmlite import ir
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

_calls = threading.Lock()
# numba keeps what it compiled by the file of each loop: after a change here, delete the folders __pycache__
_fast = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy"}


def compiled(**options: Any) -> Callable[[Callable], Callable]:
    """Compiled at the first call and kept on disk, where there is a folder to write to."""

    def with_options(loop: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **{**_fast, **options})(loop)
        except RuntimeError:
            return numba.njit(**{**_fast, **options})(loop)

    return with_options


inlined = compiled(inline="always")


@intrinsic
@no_type_check
def widest_vectors(_):
    """The loop that says this uses the widest vectors of the processor; LLVM stops at half of AVX-512 otherwise."""

    def generate(context, builder, *_):
        attributes = builder.function.attributes
        if isinstance(attributes, set):
            set.add(attributes, '"prefer-vector-width"="512"')  # llvmlite has no name for it
        return context.get_dummy_value()

    return numba.types.none(), generate


@intrinsic
@no_type_check
def from_cache_line(_, array):
    """The same memory from its first cache line on, as vectors in two lines cost more.

    It still has its length, so 64 bytes at its end must be cut off: they are not its own.
    """

    def generate(context, builder, _, arguments):
        view = context.make_array(array)(context, builder, arguments[0])
        size = context.get_value_type(numba.types.intp)
        skipped = builder.and_(builder.neg(builder.ptrtoint(view.data, size)), ir.Constant(size, 63))
        by_byte = builder.bitcast(view.data, ir.IntType(8).as_pointer())
        view.data = builder.bitcast(builder.gep(by_byte, [skipped]), view.data.type)
        return impl_ret_borrowed(context, builder, array, view._getvalue())

    return array(array), generate


def is_cpu_float32(tensor: torch.Tensor) -> bool:
    """Whether these loops can read it: single precision on a CPU."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


@contextmanager
def threads() -> Iterator[None]:
    """As many as PyTorch uses; one call at a time: some threading layers of numba are not re-entrant."""
    with _calls:
        count = torch.get_num_threads()
        before = numba.get_num_threads()
        if torch.get_num_threads() != count:  # numba's OpenMP layer, which has just begun, gave PyTorch all cores
            torch.set_num_threads(count)
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore
        try:
            yield
        finally:
            numba.set_num_threads(before)
