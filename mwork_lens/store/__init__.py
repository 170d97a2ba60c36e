"""Results as directories that are written whole or not at all, and checked when they are read."""

from .result import Result, atomic_directory, cache_directory, require_free, storable, versions
