"""What a model's own generation settings ask for, beside what ends a text."""

import warnings
from typing import Any
from weakref import WeakSet

from ..model import HookedModel
from ..model.architecture import generation_settings

_NOTHING = {"num_beams": 1, "repetition_penalty": 1, "guidance_scale": 1, "no_repeat_ngram_size": 0}
_NOTHING |= {"min_length": 0, "min_new_tokens": 0}
_CHANGES = (
    *_NOTHING,
    *("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
    *("sequence_bias", "exponential_decay_length_penalty", "watermarking_config", "penalty_alpha", "dola_layers"),
)
"""Settings with which transformers writes something else than the likeliest tokens, and the values that change nothing.
How long texts are and how they are sampled is what the caller of :func:`generate` says."""

_warned: WeakSet[HookedModel] = WeakSet()


def own_stop_strings(model: HookedModel) -> tuple[str, ...]:
    """Strings that end a text."""
    strings = getattr(generation_settings(model), "stop_strings", None) or ()
    return (strings,) if isinstance(strings, str) else tuple(strings)


def warn_of_settings(model: HookedModel) -> None:
    """Say once for a model which of its settings are not applied."""
    settings = generation_settings(model)
    values = {name: getattr(settings, name, None) for name in _CHANGES}
    asked = [f"{name}={_short(value)}" for name, value in values.items() if value not in (None, [], _NOTHING.get(name))]
    if asked and model not in _warned:
        _warned.add(model)
        warnings.warn(
            f"The generation settings of {model.cfg.model_name} ask for {', '.join(asked)}, which is not applied: what "
            "is written here are the likeliest tokens, or samples, of the model itself.",
            stacklevel=4,
        )


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) < 30 else f"{repr(value)[:30]} ..."
