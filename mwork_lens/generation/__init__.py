"""Text that a model writes, with neurons as they are, off or steered."""

from .comparing import Generations, generations
from .completions import Completion, StopRule, continue_from, generate, left_padded, picker
from .decoding import Cached, cache_rows, concat_caches, new_cache
from .steering import Steering, mean_difference, steer
