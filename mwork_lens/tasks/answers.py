"""A file of answers, one a line: what is there is not asked again. Of several processes each writes a file of its own
until all are asked; then the first one's has all answers, as it would have alone."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..model import require_same_model
from ..store import processes, write_text
from ..text import remove_cut_line, whole_lines

KEY = ("arm", "part", "off", "language", "id")
"""The columns that say which question was asked under which condition."""
_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("arm", "part", "language", "id", "document", "output", "stopped"), str),
    **{"off": str | None, "scores": dict, "nats": float | int, "tokens": int},
}
"""What each column of an answer holds."""
Key = tuple[str | None, ...]
Answers = dict[Key, dict[str, Any]]
"""Answers as the file has them, by their key."""


def read_answers(path: Path, record: Mapping[str, Any]) -> Answers:
    """All that are there, the same in every process; refused where they are of another model than ``record``.

    What other processes have written, and did not end, goes over to the first one's file.
    """

    def read() -> list[dict[str, Any]]:
        answers = _read(path)
        for other in _others(path):
            more = {key: answer for key, answer in _read(other).items() if key not in answers}
            append(path, more.values())
            answers |= more
            other.unlink()
        _require_same_weights(answers.values(), record, path)
        return list(answers.values())

    return by_key(processes.from_first(read))


def append(path: Path, answers: Iterable[Mapping[str, Any]]) -> None:
    """Write further lines."""
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(map(_line, answers)))


def own_file(path: Path) -> Path:
    """The file that this process writes."""
    return path if processes.is_first() else path.with_name(f"{path.name}-{processes.number()}")


def gather(path: Path, answers: Answers, order: Iterable[Key]) -> None:
    """Add what other processes have, and write all that this order has, and then all others, as one file."""
    if processes.count() == 1:
        return
    for theirs in processes.gathered(list(answers.values())):
        answers |= by_key(theirs)
    if processes.is_first():
        write_text(path, "".join(_line(answers[key]) for key in dict.fromkeys([*order, *answers])))
        for other in _others(path):
            other.unlink()


def by_key(answers: Iterable[dict[str, Any]]) -> Answers:
    """Each with its key."""
    return {tuple(answer[name] for name in KEY): answer for answer in answers}


def _line(answer: Mapping[str, Any]) -> str:
    return json.dumps(answer, ensure_ascii=False) + "\n"


def _others(path: Path) -> list[Path]:
    """The files of processes that are not the first."""
    name = re.compile(rf"{re.escape(path.name)}-\d+")
    return sorted(entry for entry in path.parent.iterdir() if name.fullmatch(entry.name))


def _read(path: Path) -> Answers:
    """The whole lines of a file; one that was cut off by the end of its process is dropped from it."""
    if not path.exists():
        return {}
    try:
        # an answer may hold U+2028 or another line end of splitlines
        answers = [_checked(json.loads(line)) for line in whole_lines(path)]
        # only now: a file of something else stays as it is
        remove_cut_line(path, "" if answers else f'{{"{KEY[0]}": "')
        return by_key(answers)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of answers ({error}): give another directory.") from error


def _require_same_weights(answers: Iterable[Mapping[str, Any]], record: Mapping[str, Any], path: Path) -> None:
    """Refuse answers of another model, or of this one in another dtype."""
    recorded = {str(fingerprint): fingerprint for row in answers for fingerprint in [row.get("fingerprint")]}
    for fingerprint in recorded.values():
        require_same_model({"model": record["model"], "fingerprint": fingerprint}, record, path, stacklevel=6)


def _checked(answer: Any) -> dict[str, Any]:
    """An answer as it is written; a TypeError or KeyError for anything else."""
    for name, kind in _KINDS.items():
        if not isinstance(answer[name], kind) or isinstance(answer[name], bool):
            raise TypeError(f"{name}={answer[name]!r:.40} is no {name} of an answer")
    if answer["tokens"] < 1:
        raise TypeError(f"tokens={answer['tokens']} are not tokens")
    if not all(isinstance(score, float | int) for score in answer["scores"].values()):
        raise TypeError(f"scores={answer['scores']!r:.60} are not scores")
    return answer
