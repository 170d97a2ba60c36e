"""What a user may choose: what is misspelt is refused in one line, with the choices, those most like it first."""

from collections.abc import Iterable
from difflib import SequenceMatcher

NAMED = 24
"""Names that a sentence lists."""
ALIKE = 0.6
"""How much of two words must agree (0 to 1) for one to be named first."""


def listed(choices: Iterable[object], like: object = "") -> str:
    """Choices with commas, those spelt most like ``like`` first, the others in their order.

    Example:
        >>> listed(["zero", "mean", "scale"], like="scael")
        'scale, zero, mean'
    """
    names = [str(choice) for choice in choices]
    scores = {name: SequenceMatcher(None, str(like).casefold(), name.casefold()).ratio() for name in names}
    near = sorted((name for name in names if scores[name] >= ALIKE), key=lambda name: -scores[name])
    return ", ".join([*near, *(name for name in names if scores[name] < ALIKE)]) or "none"


def named(names: Iterable[object], what: str) -> str:
    """All names with commas, or how many there are where that would be more than a line.

    Example:
        >>> named(["en", "fr"], "languages"), named(range(30), "languages")
        ('en, fr', '30 languages')
    """
    shown = [str(name) for name in names]
    return ", ".join(shown) if len(shown) <= NAMED else f"{len(shown)} {what}"


def require_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value of an argument that is not among its choices.

    Raises:
        ValueError: that names the argument, the value and the choices.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name}={value!r}: it must be one of {listed(choices, value)}.")
