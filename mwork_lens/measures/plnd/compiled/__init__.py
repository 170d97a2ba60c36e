"""Compiled loops for a CPU: what would otherwise be a dozen passes over memory, in one.

``normalise_and_rotate`` is what ``attention.Geometry`` makes of queries or keys, ``sums_of_rows`` (with
``weights_of_rows`` and ``partners``) is ``qk_dense.changed_rows`` for their neurons, ``sums_after_norm`` and
``sums_of_values`` are ``post_norm.change_after_norm``. All arrays are float32 and in C order.
"""

from .norms import normalise_and_rotate, sums_after_norm, sums_of_values
from .rows import KEYS_AT_ONCE, partners, sums_of_rows, weights_of_rows
from .tools import is_cpu_float32, threads
