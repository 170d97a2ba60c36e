"""Text files: what is a line, a row, a text; one reader for all of them, with errors that name file and line."""

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import regex

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv")
Parsed = TypeVar("Parsed")

_SIGNATURES = {
    b"\xff\xfe": "UTF-16 or UTF-32",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "gzip (name it .gz)",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"{\\rtf": "RTF",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull fetches the file)",
    b"PK\x03\x04": "a zip archive or an office document",
    b"%PDF": "PDF",
    b"PAR1": "Parquet",
}
"""How files begin that are not UTF-8 text."""


def suffix_of(path: Path) -> str:
    """The type of a file, compressed or not, in lower case: ``.jsonl`` for ``news.fr.jsonl.gz`` or ``FR.JSONL``."""
    return Path(_plain_name(path)).suffix.lower()


def _plain_name(path: Path) -> str:
    return path.name[:-3] if path.name.lower().endswith(".gz") else path.name


def stem_of(path: Path) -> str:
    """A file's name without its type."""
    return Path(_plain_name(path)).stem


def read_rows(
    path: Path, parse: Callable[[Any], Parsed], *, field: str | None = None, columns: Sequence[str] = ()
) -> list[Parsed]:
    """What ``parse`` makes of each row of a file: of a dict by column, with texts as they are in the file.

    Rows are the lines of a ``.txt`` or ``.jsonl`` (blank ones are skipped, in a ``.txt`` at its end only), those of a
    ``.csv`` or ``.tsv`` after its header (or of a ``.tsv`` with these ``columns``), the items of a ``.json`` list; all
    also with ``.gz``, as UTF-8. The column of a ``.txt`` is ``field``, and a table must have it. (``datasets`` would
    read "NA" as NaN, "007" as 7.)

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unsupported, empty or malformed file, or one that is not UTF-8 text, with its line.
    """
    rows = list(iterate_rows(path, parse, field=field, columns=columns))
    if not rows:
        raise ValueError(f"{path} is empty.")
    return rows


def iterate_rows(
    path: Path, parse: Callable[[Any], Parsed], *, field: str | None = None, columns: Sequence[str] = ()
) -> Iterator[Parsed]:
    """The same one after another; of a file, all but a ``.json``, only as much is in memory as a row takes."""
    suffix, place = suffix_of(path), Place(path)
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: unsupported file type ({', '.join(SUFFIXES)} are read, also with .gz).")
    with place.named():
        for number, row in _parsed(place, suffix, field, columns):
            place.number = number
            yield parse(row)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file; they end at ``\\n`` or ``\\r\\n`` alone, and blank ones at the end do not count.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8 text, with the line.
    """
    return list(iterate_lines(path))


def iterate_lines(path: Path) -> Iterator[str]:
    """The same one after another."""
    place, waiting = Place(path), list[str]()
    with place.named():
        for _, line in _lines(place, ".txt"):
            waiting.append(line.rstrip("\r\n"))
            if line.strip():
                yield from waiting
                waiting = []


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that is written line by line, without one that was cut off by the end of its process."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]


def remove_cut_line(path: Path, beginning: str) -> None:
    """Remove what follows the last line end; a ValueError where it does not begin like this, as far as it goes."""
    cut, begins = path.read_bytes().rpartition(b"\n")[2], beginning.encode()
    if not (cut.startswith(begins) or begins.startswith(cut)):
        raise ValueError(f"its last line is {cut[:40].decode('utf-8', 'replace')!r}")
    if cut:
        os.truncate(path, path.stat().st_size - len(cut))


@dataclass
class Place:
    """Where in a file reading is."""

    path: Path
    number: int = 0
    unit: str = "line"

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Whatever is wrong with a file becomes a ValueError with its path and the line."""
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no file {str(self.path)!r}.") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, *_BROKEN) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            what = "its brackets are nested too deeply" if isinstance(error, RecursionError) else what
            where = f", {self.unit} {self.number}" if self.number else ""
            raise ValueError(f"{self.path} cannot be read{where}: {what.rstrip('.')}.") from error


_BROKEN = (OSError, EOFError, zlib.error)

Numbered = Iterator[tuple[int, Any]]
"""With the line in which each begins; rows of a list with their place in it."""


def _lines(place: Place, suffix: str) -> Iterator[tuple[int, str]]:
    """Lines with their ends; U+2028 and its like end none, and a lone ``\\r`` only where there is no ``\\n`` at all."""
    path = place.path
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rb") as file:
        for place.number, data in enumerate(file, start=1):
            line = _decoded(data, first=place.number == 1)
            if place.number == 1 and suffix in (".txt", ".tsv") and "\n" not in line:
                yield from enumerate((f"{part}\n" for part in line.removesuffix("\r").split("\r")), start=1)
            else:
                yield place.number, line


def _decoded(data: bytes, first: bool) -> str:
    """One line of UTF-8 without a byte-order mark; a ValueError names the encoding that the file seems to have."""
    if first:
        kind = next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), None)
        if kind:
            remedy = f". {_REMEDY}" if kind.startswith("UTF") else ""
            raise ValueError(f"it is not UTF-8 text but begins like {kind}{remedy}")
        data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in data:
        raise ValueError(f"it holds a NUL character, as UTF-16 text and binary files do. {_REMEDY}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        start, bad = error.start, data[error.start]
        shown = data[max(0, start - 12) : start + 8].decode("cp1252", errors="replace").strip()
        guess = f"in Latin-1 or Windows-1252 it would be {shown!r}" if bad >= 0xA0 else "another encoding, or damaged"
        raise ValueError(f"byte 0x{bad:02x} is not UTF-8 ({guess}). {_REMEDY}") from None


_REMEDY = "Files are read as UTF-8: convert it, e.g. with iconv -f ENCODING -t UTF-8"


def _parsed(place: Place, suffix: str, field: str | None, columns: Sequence[str]) -> Numbered:
    lines = _lines(place, suffix)
    if suffix == ".txt":
        yield from ((number, {field or "text": line}) for number, line in _filled(place, lines))
    elif suffix == ".jsonl":
        yield from ((number, _json_line(line)) for number, line in lines if line.strip())
    elif suffix == ".csv":
        yield from _table(place, _csv(place, (line for _, line in lines)), field)
    elif suffix == ".json":
        content, place.unit = _json("".join(line for _, line in lines)), "item"
        yield from enumerate(content if isinstance(content, list) else [content], start=1)
    else:
        cells = ((number, line.rstrip("\r\n").split("\t")) for number, line in lines if line.strip())
        rows = ((number, dict(zip(columns, row, strict=False))) for number, row in cells)
        yield from rows if columns else _table(place, cells, field)


def _filled(place: Place, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Without blank lines at the end; one in the middle would shift all that follow, and is refused."""
    blank = 0
    for number, line in lines:
        if not line.strip():
            blank = blank or number
        elif blank:
            place.number = blank
            raise ValueError("it is empty; remove it (in a parallel corpus from every language's file)")
        else:
            yield number, line.rstrip("\r\n")


def _json_line(line: str) -> Any:
    try:
        return _json(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"its lines must be JSON, each by itself (a list of objects is a .json): {error}") from None


def _json(text: str) -> Any:
    content = json.loads(text.strip(" \t\r\n"), object_pairs_hook=_once)
    if _HALF.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            bad = f"\\u{ord(error.object[error.start]):04x}"
            raise ValueError(f"{bad} is half of a character (a lone surrogate), which is not text") from None
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(content := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {max(names, key=names.count)!r} is there twice")
    return content


_HALF = regex.compile(r"\\u[dD][89a-fA-F]")
_QUOTED = regex.compile(r'"((?:[^"]|"")*+)"')
_PLAIN = regex.compile(r'[^",\r\n][^,\r\n]*+|(?!")')
_ENDS = regex.compile(r"\r\n|\r|\n")


def _csv(place: Place, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows of a .csv, with the line in which each begins; a blank line is not one.

    (The module ``csv`` has a limit of 131,072 characters, which is the whole process's, and does not say where a quote
    was opened.)
    """
    text, at, line, row, begun, further = "", 0, 1, list[str](), 1, 1
    while True:
        if at == len(text):
            text, at = next(lines, ""), 0
            if not text and not row:
                return
        field = _QUOTED.match(text, at) or _PLAIN.match(text, at)
        if field is None and (block := "".join(islice(lines, further))):  # in which the quote may be closed
            text, at, further = text[at:] + block, 0, 2 * further
            continue
        further = 1
        end = field.end() if field else at
        follows = text[end : end + 2]
        if field is None or (follows and follows[0] not in ",\r\n"):
            place.number = line
            fault = "is followed by more text (a quote within it is written twice)" if field else "is not closed"
            raise ValueError(f"the quote that is opened there {fault}")
        quoted = text[at : at + 1] == '"'
        if not quoted and field[0].lstrip(" ").startswith('"'):
            place.number = line
            raise ValueError("there is a space before a quote: remove it")
        row.append(field[1].replace('""', '"') if quoted else field[0])
        line += len(_ENDS.findall(field[0]))
        at = end + (2 if follows == "\r\n" else len(follows[:1]))
        if follows[:1] != ",":
            if row != [""] or quoted:
                yield begun, row
            line += bool(follows)
            row, begun = [], line


def _table(place: Place, rows: Iterator[tuple[int, list[str]]], field: str | None) -> Numbered:
    place.number, header = next(rows, (1, []))
    columns = [column.strip() for column in header]
    if len(set(columns)) < len(columns):
        raise ValueError(f"the column {max(columns, key=columns.count)!r} is there twice")
    if columns and field is not None and field not in columns:
        raise ValueError(f"no column {field!r} among {columns}")
    for place.number, row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{len(row)} columns where the header has {len(columns)}")
        yield place.number, dict(zip(columns, row, strict=True))


def files_of(folder: Path, further: Sequence[str] = ()) -> tuple[list[Path], list[Path]]:
    """The files of a folder of types that are read (also ``further`` ones), and all else that is not hidden; sorted."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    read = [path for path in entries if path.is_file() and suffix_of(path) in (*SUFFIXES, *further)]
    return read, [path for path in entries if path not in read]
