"""Text that a model writes, with neurons as they are, off or steered."""

from .comparing import Generations, generations
from .completions import Completion, Ends, generate, left_padded, picker, write_on
from .decoding import Cached, cache_rows, joined, new_cache
from .steering import Steering, mean_difference, steer
