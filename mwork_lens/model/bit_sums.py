"""Integer sums of the bits of tensors, and of their bits after rounding to bfloat16, in one pass over memory."""

from collections.abc import Iterator
from itertools import chain
from typing import no_type_check

import numpy as np
import torch
from torch import Tensor

from .jit import compiled

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_ONCE = 1 << 18


def bit_sums(*tensors: Tensor) -> tuple[int, int]:
    """Of the bits as signed integers of the dtype's size, and of those after rounding to bfloat16; modulo 2⁶⁴."""
    parts = chain(*(_flat_parts(_in_order_of_memory(tensor.detach())) for tensor in tensors))
    exact, rounded = (sum(each) for each in zip(*map(_sums, parts), strict=True))
    return _in_64_bits(exact), _in_64_bits(rounded)


def _in_64_bits(total: int) -> int:
    """As integers of 64 bits add up, whatever the order."""
    return (total + 2**63) % 2**64 - 2**63


def _in_order_of_memory(tensor: Tensor) -> Tensor:
    """The same entries, which a contiguous view has if they fill their memory; their order does not matter."""
    return tensor.permute(*sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis)))


def _flat_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Without a copy of what is contiguous; copies of the rest fit into a cache."""
    if tensor.is_contiguous():
        yield tensor.view(-1)
    elif (of_row := tensor[0].numel()) <= _AT_ONCE:
        yield from (part.reshape(-1) for part in tensor.split(_AT_ONCE // of_row))
    else:
        yield from chain(*map(_flat_parts, tensor))


def _sums(flat: Tensor) -> tuple[int, int]:
    if flat.dtype == torch.float32 and flat.device.type == "cpu":
        exact, rounded = _both(flat.numpy().view(np.uint32))
        return int(exact), int(rounded)
    exact = _sum_of_bits(flat)
    if flat.dtype == torch.bfloat16:
        return exact, exact
    return exact, sum(_rounded(part) for part in flat.split(_AT_ONCE))


def _rounded(part: Tensor) -> int:
    return _sums(part.float())[1] if part.dtype == torch.float16 else _sum_of_bits(part.to(torch.bfloat16))


def _sum_of_bits(flat: Tensor) -> int:
    integers = flat.view(_INTEGERS[flat.element_size()])
    return int(_one(integers.numpy()) if flat.device.type == "cpu" else integers.sum(dtype=torch.int64))


@compiled()
@no_type_check
def _one(integers):
    total = np.int64(0)
    for i in range(integers.size):
        total += np.int64(integers[i])
    return total


@compiled()
@no_type_check
def _both(bits):
    exact, rounded = np.int64(0), np.int64(0)
    for i in range(bits.size):
        word = bits[i]
        # to the nearest, of two as near to the even one
        upper = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        exact += np.int64(np.int32(word))
        rounded += np.int64(np.int16(upper))
    return exact, rounded
