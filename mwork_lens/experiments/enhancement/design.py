"""Names of the design, which is in ``experiments/settings.py``."""

from ..settings import TUNED_ARMS, EnhancementConfig

ARMS, Design = TUNED_ARMS, EnhancementConfig
HIGH_RESOURCE = ("de", "fr", "zh", "es", "ru")
LOW_RESOURCE = ("vi", "th", "ar", "sw")
