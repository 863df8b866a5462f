"""Documents in a Parquet file: what `fetch_data` writes, and what later stages read piece by piece.

A row is a document, or one of several consecutive pieces of a long one; joined they are the document. Of a file only a
few row groups, a megabyte of text each, are in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gramprune.errors import GrampruneError, first_line
from gramprune.storage import files
from gramprune.text.read import LONGEST, Document

PIECE = 1 << 14  # characters, or token ids, of a row
GROUP = 1 << 20  # bytes of a row group
HELD = 8  # row groups in memory
GAP = re.compile(r"(?<=\S) (?=\S)")  # where tokenizers that split at spaces give the same tokens on both sides


def write(
    path: Path,
    documents: Iterator[tuple[str, Document]],  # kind and content, all of one kind
    about: dict[str, Any],
    noted: Counter[str],  # filled while documents are taken
) -> dict[str, Any]:
    """Write documents, and into the file's metadata `about`, `noted`, their kind, number, size and digest.

    Returns what was written into the metadata. Raises GrampruneError if there is no document, or nothing in any.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    first = next(documents, None)
    kind = first[0] if first else "text"
    values = arrow.list_(arrow.int32()) if kind == "input_ids" else arrow.string()
    schema = arrow.schema({"document": arrow.int64(), "bytes": arrow.int64(), kind: values})
    digest, count, size = hashlib.sha256(), 0, 0
    with files.atomic(path) as part, parquet.ParquetWriter(part, schema) as writer:
        rows: list[tuple[int, int, Any]] = []
        waiting = 0

        def write_group() -> None:
            columns = zip(*rows, strict=True)
            writer.write_table(arrow.table(dict(zip(schema.names, columns, strict=True)), schema=schema))
            rows.clear()

        for _, document in chain([first] if first else [], documents):
            one = hashlib.sha256()
            for piece in _pieces(kind, document):
                content = np.array(piece, "<i4").tobytes() if kind == "input_ids" else piece.encode()
                one.update(content)
                rows.append((count, len(content), piece))
                waiting += len(content)
                size += len(content)
                if waiting >= GROUP or len(rows) == 10_000:
                    write_group()
                    waiting = 0
            digest.update(one.digest())
            count += 1
        if rows:
            write_group()
        if not size:
            found = f"all of its documents ({count:,}) are empty" if count else "there is no document in it"
            raise GrampruneError(f"dataset {about['dataset']}: {found}; give text.")
        about = {**about, **+noted, "kind": kind, "documents": count, "bytes": size, "sha256": digest.hexdigest()}
        writer.add_key_value_metadata({"gramprune": json.dumps(about, sort_keys=True)})
    return about


def _pieces(kind: str, document: Any) -> Iterator[Any]:
    """The rows of a document: texts are cut between words, where there is a space; conversations are not cut."""
    if kind == "messages":
        yield document
    elif kind == "input_ids":
        yield from (document[at : at + PIECE] for at in range(0, len(document), PIECE))
    else:
        text = ""
        for more in [document] if isinstance(document, str) else document:
            text += more
            at = 0
            while len(text) - at > PIECE:
                gaps = GAP.finditer(text, at + PIECE - PIECE // 8, at + PIECE)
                end = max((gap.start() for gap in gaps), default=at + PIECE)
                yield text[at:end]
                at = end
            text = text[at:]
        yield text


class Documents(Sequence):
    """The documents of a file that `write` wrote, read when asked for.

    One of more than LONGEST bytes counts as several, of about `piece` bytes each, LONGEST at most.
    Raises GrampruneError if the file is damaged.
    """

    def __init__(self, path: Path | str, piece: int = LONGEST):
        import pyarrow.parquet as parquet

        self.path = Path(path)
        with _readable(self.path):
            self._file = parquet.ParquetFile(path)
            self.about: dict[str, Any] = json.loads(self._file.metadata.metadata[b"gramprune"])
            self.kind: str = self.about["kind"]
            """text, messages or input_ids"""
            table = self._file.read(columns=["document", "bytes"])
            # As arrays in one piece: for those in several pyarrow imports pandas, which takes half a second.
            numbers, sizes = (table.column(name).combine_chunks().to_numpy() for name in ("document", "bytes"))
            groups = [self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)]
        self._groups = np.cumsum([0, *groups]).tolist()  # the first row of each, and the end
        self._group = lru_cache(HELD)(self._read)  # documents are asked for in random order
        self._begins = [*np.flatnonzero(np.diff(numbers, prepend=-1)).tolist(), len(numbers)]
        self._sizes = sizes.tolist()
        self._ranges = [rows for first, end in pairwise(self._begins) for rows in self._divided(first, end, piece)]

    def _divided(self, first: int, end: int, piece: int) -> Iterator[tuple[int, int]]:
        """The rows of a document; of a long one, those of each piece."""
        size = 0
        if sum(self._sizes[first:end]) > LONGEST:
            for row in range(first, end):
                if size and size + self._sizes[row] > min(piece, LONGEST):
                    yield first, row
                    first, size = row, 0
                size += self._sizes[row]
        yield first, end

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]  # nobody takes slices
        """A text, the JSON of a conversation, or a list of token ids."""
        rows = [self._row(row) for row in range(*self._ranges[index])]
        return list(chain.from_iterable(rows)) if self.kind == "input_ids" else "".join(rows)

    def rows(self) -> Iterator[tuple[bool, Any]]:
        """Every row in order, and before it whether a document begins there."""
        for first, end in pairwise(self._begins):
            for row in range(first, end):
                yield row == first, self._row(row)

    def _row(self, row: int) -> Any:
        group = bisect_right(self._groups, row) - 1
        return self._group(group)[row - self._groups[group]]

    def _read(self, group: int) -> list[Any]:
        with _readable(self.path):
            return self._file.read_row_group(group, columns=[self.kind]).column(0).to_pylist()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors about a damaged file into a sentence."""
    import pyarrow as arrow

    try:
        yield
    except (OSError, arrow.ArrowException, ValueError, KeyError, TypeError) as error:
        raise GrampruneError(f"{path} cannot be read: {first_line(error)} Delete it to have it made again.") from error
