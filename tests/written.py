"""Files of text as people have them, written by the tests, and what `fetch_data` reads from them."""

import json

import pyarrow as arrow
import pyarrow.parquet as parquet

from gramprune.experiment import settings
from gramprune.stages.texts import fetch_data

SAID = {"role": "user", "content": "Hi"}
CHAT = [SAID, {"role": "assistant", "content": "Hello."}]


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(*found: str) -> str:
    return lines(*({"text": text} for text in found))


def packed(codec: str, text: str) -> bytes:
    return arrow.compress(text.encode(), codec=codec, asbytes=True)


def table(**columns) -> bytes:
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


def fetched(folder, files: dict, **dataset) -> tuple[list, dict]:
    """What `fetch_data` writes of these files, and what it notes."""
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    names = [str(folder / name) for name in files]
    chosen = settings.Dataset(path=names if len(names) > 1 else names[0], **dataset)
    fetch_data(folder / "out.parquet", "mine", chosen.source_settings, "code")
    written = parquet.read_table(folder / "out.parquet")
    about = json.loads(parquet.read_metadata(folder / "out.parquet").metadata[b"gramprune"])
    documents: dict[int, list] = {}
    for number, value in zip(written["document"].to_pylist(), written[about["kind"]].to_pylist(), strict=True):
        documents.setdefault(number, []).append(value)
    whole = [rows[0] if len(rows) == 1 else "".join(rows) for rows in documents.values()]
    return [json.loads(text) for text in whole] if about["kind"] == "messages" else whole, about
