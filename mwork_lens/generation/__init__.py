"""Text that a model writes, with neurons as they are, off or steered."""

from .comparing import Generations, generations
from .completions import Completion, generate
from .fallback import fallback
from .steering import Steering, mean_difference, steer
