"""Results as directories that are written whole or not at all, and checked when they are read."""

from . import processes as processes
from .agreement import as_json, digest, require_same
from .files import (
    atomic_directory,
    atomic_file,
    folded,
    only_writer,
    output_directory,
    temporary_directory,
    user_path,
    write_text,
)
from .fitting import fits, require_record
from .hashes import Hashes
from .result import Result, cache_directory, require_free, storable, versions
