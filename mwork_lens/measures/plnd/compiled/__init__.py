"""Compiled loops for a CPU: what would otherwise be a dozen passes over memory, in one.

``sides`` is what ``attention.Geometry`` makes of queries or keys, ``sums_of_rows`` (with ``weights_of_rows`` and
``partners``) is ``softmax_change.changed_rows`` for their neurons, ``sums_after_norm`` and ``sums_of_values`` are
``norms.change_after_norm``. All arrays are float32 and in C order.
"""

from .norms import sums_after_norm, sums_of_values
from .rotate import sides
from .rows import KEYS_AT_ONCE, partners, sums_of_rows, weights_of_rows
from .tools import applies, threads

__all__ = [
    "KEYS_AT_ONCE",
    "applies",
    "partners",
    "sides",
    "sums_after_norm",
    "sums_of_rows",
    "sums_of_values",
    "threads",
    "weights_of_rows",
]
