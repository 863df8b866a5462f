"""Files of texts as rows, one reader per format.

| ending              | a row                                                                                  |
|---------------------|----------------------------------------------------------------------------------------|
| `.txt`              | the whole file, in pieces                                                              |
| `.jsonl`, `.ndjson` | a line                                                                                 |
| `.json`             | an element of the array, or of the only list in an object; a line, where lines are JSON |
| `.csv`, `.tsv`      | a record; the first line has the names                                                 |
| `.parquet`          | a row                                                                                  |

All but `.parquet` may be compressed: `.gz`, `.zst`, `.bz2`. Text is UTF-8, or what its byte order mark says. Files are
read as they go: none is ever whole in memory, but for an object in `.json`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from gramprune.errors import GrampruneError, first_line

Row = tuple[str, Any]
"""Where it is in its file ("line 58"), and what it holds."""

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
MARKS = {  # of byte order, the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LFS_POINTER = b"version https://git-lfs"
PIECE = 1 << 16  # characters that are read at a time
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # surrogates stand for bytes that could not be decoded


def rows(path: Path, wanted: Sequence[str], dataset: str) -> Iterator[Row]:
    """The rows of a file. wanted: the fields of which one is looked for; others may be left out.

    Raises GrampruneError, naming dataset, file and line, for what cannot be read.
    """
    file = f"dataset {dataset}: {path}"
    with said(file):
        yield from READERS[format_of(path, dataset)](path, file, wanted)


def format_of(path: Path, dataset: str) -> str:
    """The ending that says how a file is read. Raises GrampruneError if none does."""
    ending, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    if ending in COMPRESSED and inner != ".parquet":
        ending = inner
    if ending not in READERS:
        raise GrampruneError(
            f"dataset {dataset}: {path} is of no known format; its name must end in one of {', '.join(READERS)}, "
            f"and may go on with {', '.join(COMPRESSED)}."
        )
    return ending


def check(path: Path, dataset: str) -> None:
    """Raises GrampruneError for a file that cannot be what its name says, before anything of it is read."""
    if path.is_dir():
        raise GrampruneError(
            f"config: datasets.{dataset}.path: {path} is a folder; name a file in it, or several as a list."
        )
    if not path.exists():
        raise GrampruneError(f"config: datasets.{dataset}.path: the file {path} does not exist.")
    if not path.is_file() or not os.access(path, os.R_OK):
        raise GrampruneError(f"config: datasets.{dataset}.path: {path} cannot be read; give a file that you may read.")
    format_of(path, dataset)
    if not path.stat().st_size:
        raise GrampruneError(f"config: datasets.{dataset}.path: the file {path} is empty.")
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise GrampruneError(
                f"config: datasets.{dataset}.path: {path} is a Git LFS pointer, not the text; fetch it with "
                "`git lfs pull`."
            )


@contextmanager
def said(file: str) -> Iterator[None]:
    """Turn what the readers' libraries raise for a damaged file into a sentence."""
    try:
        yield
    except (OSError, EOFError, ValueError, NotImplementedError, RecursionError, csv.Error) as error:
        raise GrampruneError(f"{file} cannot be read: {first_line(error)}") from error


def _open(path: Path, newline: str | None = None) -> TextIO:
    """A file's text, decompressed and without a byte order mark; bytes that are no text become surrogates."""
    with _bytes(path) as file:
        head = file.read(4)
    encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")
    return io.TextIOWrapper(_bytes(path), encoding, errors="surrogateescape", newline=newline)


def _bytes(path: Path) -> BinaryIO:
    codec = COMPRESSED.get(path.suffix.lower())
    if codec is None:
        return open(path, "rb")
    import pyarrow as arrow

    return arrow.input_stream(str(path), compression=codec)


def _check_text(text: str, file: str, line: int) -> None:
    """Raises GrampruneError for what is no text. line: of the file, where the text begins."""
    if found := NO_TEXT.search(text):
        byte = ord(found[0]) & 0xFF
        remedy = "save the file as UTF-8" if byte else "is it UTF-16 without a byte order mark? Save it as UTF-8"
        line += text.count("\n", 0, found.start())
        raise GrampruneError(f"{file}, line {line}: the byte 0x{byte:02x} is no text in UTF-8; {remedy}.")


def _lines(stream: TextIO, file: str) -> Iterator[tuple[int, str]]:
    """Lines, counted from 1."""
    for number, line in enumerate(stream, start=1):
        _check_text(line, file, number)
        yield number, line


def _text(path: Path, file: str, wanted: Sequence[str]) -> Iterator[Row]:
    yield "the file", _pieces(path, file)


def _pieces(path: Path, file: str) -> Iterator[str]:
    line = 1
    with said(file), _open(path) as stream:
        while piece := stream.read(PIECE):
            _check_text(piece, file, line)
            line += piece.count("\n")
            yield piece


def _json_lines(path: Path, file: str, wanted: Sequence[str]) -> Iterator[Row]:
    with _open(path) as stream:
        for number, line in _lines(stream, file):
            if line := line.strip().lstrip("\ufeff"):  # joined files have marks inside
                yield f"line {number}", _decoded(line, file, number)


def _decoded(text: str, file: str, line: int) -> Any:
    """One JSON value. line: of the file, where the text begins."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _not_json(file, line + error.lineno - 1, _reason(error)) from error
    except (ValueError, RecursionError) as error:  # numbers or nesting beyond Python's limits
        raise _not_json(file, line, str(error)) from error


def _reason(error: json.JSONDecodeError) -> str:
    return f"{error.msg.removesuffix(' at')} at character {error.colno}"


def _not_json(file: str, line: int, reason: str) -> GrampruneError:
    return GrampruneError(
        f"{file}, line {line}: not JSON ({reason.splitlines()[0]}); is it cut off? Mend it or take it out."
    )


def _json(path: Path, file: str, wanted: Sequence[str]) -> Iterator[Row]:
    """An array, an object, or lines of JSON under another name, as on the hub."""
    with _open(path) as stream:
        while (first := stream.read(1)).isspace():
            pass
    if first == "[":
        yield from _array(path, file)
        return
    with _open(path) as stream:
        start = next((line for _, line in _lines(stream, file) if line.strip()), "{}")
    try:
        json.loads(start)
        values = _json_lines(path, file, wanted)
    except ValueError:
        with _open(path) as stream:
            text = stream.read()
        _check_text(text, file, 1)
        values = iter([("the file", _decoded(text, file, 1))])
    for where, value in values:
        inner = _only_list(value, wanted)
        for number, element in enumerate(inner, start=1):
            yield f"{where}, element {number}", element
        if not inner:
            yield where, value


def _only_list(value: Any, wanted: Sequence[str]) -> list[Any]:
    """The rows in an object that is none itself, such as {"version": 1, "data": [...]}."""
    if not isinstance(value, dict) or any(name.partition(".")[0] in value for name in wanted):
        return []
    lists = [inner for inner in value.values() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    return lists[0] if len(lists) == 1 else []


def _array(path: Path, file: str) -> Iterator[Row]:
    """The elements of an array, each decoded when its text has been read."""
    with _open(path) as stream:
        text = _Scanner(stream, file)
        text.skip()
        number, more = 0, text.sign() != "]"
        while more:
            number += 1
            text.sign()
            yield f"element {number}, line {text.line}", text.value()
            sign = text.sign()
            if sign not in (",", "]"):
                raise _not_json(file, text.line, "expected ',' or ']'" if sign else "the array does not end")
            more = sign == ","
            if more:
                text.skip()
        text.skip()
        if text.sign():
            raise _not_json(file, text.line, "something follows the array")


class _Scanner:
    """JSON that is decoded while it is read: one sign or one value after the other."""

    def __init__(self, stream: TextIO, file: str):
        self._stream, self._file, self._decoder = stream, file, json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False
        self.line = 1

    def sign(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in " \t\r\n":
                end += 1
            self._advance(end)
            if end < len(self._text) or self._ended:
                return self._text[end : end + 1]
            self._read_on()

    def skip(self) -> None:
        """Go past that character."""
        self.sign()
        self._advance(self._at + 1)

    def value(self) -> Any:
        """The value that begins there. Raises GrampruneError, with the line, if it is none."""
        self.sign()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # An error far before the end of what was read is none of a text that goes on.
                goes_on = error.pos > len(self._text) - 100 or error.msg.startswith("Unterminated")
                if self._ended or not goes_on:
                    line = self.line + self._text.count("\n", self._at, error.pos)
                    raise _not_json(self._file, line, _reason(error)) from error
            except (ValueError, RecursionError) as error:
                raise _not_json(self._file, self.line, str(error)) from error
            else:
                if end < len(self._text) or self._ended:  # a number may go on
                    self._advance(end)
                    return value
            self._read_on()

    def _advance(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _read_on(self) -> None:
        rest = self._text[self._at :]
        new = self._stream.read(max(PIECE, len(rest)))  # twice as much: a long value is not tried too often
        _check_text(new, self._file, self.line + rest.count("\n"))
        self._text, self._at, self._ended = rest + new, 0, not new


def _table(path: Path, file: str, wanted: Sequence[str], dialect: str) -> Iterator[Row]:
    """Records of a table of text. A comma that should have been quoted would cut a text short: lengths are checked."""
    csv.field_size_limit(2**31 - 1)
    with _open(path, newline="") as stream:
        lines = (line for _, line in _lines(stream, file))
        reader = csv.reader(lines, dialect, strict=True)
        names: list[str] = []
        begin = 1
        try:
            for record in reader:
                if not names:
                    names = record
                    twice = next((name for name in names if name and names.count(name) > 1), None)
                    if twice:
                        raise GrampruneError(f"{file}, line {begin}: two columns have the name {twice!r}; rename one.")
                elif record:
                    if len(record) != len(names):
                        raise GrampruneError(
                            f"{file}, line {begin}: {len(record)} fields where the first line names {len(names)}; "
                            "put texts that hold the separator in double quotes."
                        )
                    yield f"line {begin}", dict(zip(names, record, strict=True))
                begin = reader.line_num + 1
        except csv.Error as error:
            raise GrampruneError(
                f"{file}, line {begin}: the record cannot be read ({first_line(error).rstrip('.')}); put texts that "
                "hold quotes in double quotes, and double those inside."
            ) from error


def _parquet(path: Path, file: str, wanted: Sequence[str]) -> Iterator[Row]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            columns = [name for name in names if any(f"{field}.".startswith(f"{name}.") for field in wanted)]
            if not columns:
                yield "row 1", dict.fromkeys(names)
                return
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=columns):  # few: a document may be long
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except arrow.ArrowException as error:  # of a dozen kinds
        raise ValueError(str(error)) from error


READERS: dict[str, Callable[..., Iterator[Row]]] = {
    ".txt": _text,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": partial(_table, dialect="excel"),
    ".tsv": partial(_table, dialect="excel-tab"),
    ".parquet": _parquet,
}
