"""Where models and texts come from: the embedded demo, local files, the hub. Only this module uses the network."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError
from gramprune.storage import files

log = logging.getLogger(__name__)


def documents(dataset: dict[str, Any], name: str) -> Iterator[str]:
    """The texts of a dataset, in order: from the demo, a local .txt, .jsonl or .parquet file, or the hub.

    dataset: as in the settings. A .txt file is one document. Raises GrampruneError, naming file and field.
    """
    limit = dataset.get("documents")
    for count, text in enumerate(_all_documents(dataset, name)):
        if count == limit:
            return
        if not isinstance(text, str):
            raise GrampruneError(
                f"dataset {name}: document {count} has {type(text).__name__} in the field {dataset['field']!r}, "
                "expected text."
            )
        yield text


def _all_documents(dataset: dict[str, Any], name: str) -> Iterator[str]:
    if dataset.get("demo"):
        from gramprune.text import demo

        yield from demo.documents(heldout=dataset["demo"] == "heldout")
    elif dataset.get("path"):
        yield from _local(Path(dataset["path"]), dataset["field"], name)
    else:
        yield from _hub(dataset, name)


def _local(path: Path, field: str, name: str) -> Iterator[str]:
    try:
        if path.suffix == ".txt":
            yield path.read_text(encoding="utf-8")
        elif path.suffix == ".jsonl":
            with open(path, encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield _field(json.loads(line), field, f"dataset {name}: {path}, line {number},")
        elif path.suffix == ".parquet":
            import pyarrow.parquet as parquet

            file = parquet.ParquetFile(path)
            _field(dict.fromkeys(file.schema_arrow.names), field, f"dataset {name}: {path}")
            for batch in file.iter_batches(columns=[field]):
                yield from batch.column(0).to_pylist()
        else:
            raise GrampruneError(f"dataset {name}: {path} is not a .txt, .jsonl or .parquet file.")
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise GrampruneError(f"dataset {name}: {path} cannot be read: {_first_line(error)}") from error


def _field(row: Any, field: str, where: str) -> Any:
    if not isinstance(row, dict) or field not in row:
        has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise GrampruneError(f"{where} has no field {field!r} but {has}; set the dataset's `field`.")
    return row[field]


def _hub(dataset: dict[str, Any], name: str) -> Iterator[str]:
    import datasets

    try:
        # Streaming: of C4's shards only as many documents are read as are asked for.
        rows = datasets.load_dataset(
            dataset["hub"],
            dataset.get("config"),
            data_files=dataset.get("files"),
            split=dataset["split"],
            revision=dataset.get("revision"),
            streaming=True,
        )
        for number, row in enumerate(rows):
            yield _field(row, dataset["field"], f"dataset {name}: {dataset['hub']}, row {number},")
    except GrampruneError:
        raise
    except Exception as error:  # the library raises a dozen kinds for a wrong name or a missing network
        raise GrampruneError(
            f"dataset {name}: {dataset['hub']} could not be fetched from the hub: {_first_line(error)}"
        ) from error


def write_documents(path: Path, texts: Iterator[str], about: dict[str, Any]) -> dict[str, Any]:
    """Write texts as Parquet (column `text`), and `about` with their number and digest into its metadata.

    Returns what was written into the metadata.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    schema = arrow.schema([("text", arrow.string())])
    digest, count = hashlib.sha256(), 0
    with files.atomic(path) as part, parquet.ParquetWriter(part, schema) as writer:
        for batch in batched(texts, 1000):
            writer.write_table(arrow.table({"text": batch}, schema=schema))
            for text in batch:
                digest.update(hashlib.sha256(text.encode()).digest())
            count += len(batch)
        about = {**about, "documents": count, "sha256": digest.hexdigest()}
        writer.add_key_value_metadata({"gramprune": json.dumps(about, sort_keys=True)})
    return about


def batched(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    """Lists of at most `size` texts."""
    while batch := list(islice(texts, size)):
        yield batch


def dataset_revision(dataset: dict[str, Any]) -> str | None:
    """The exact commit of a dataset on the hub; None for local text and for the library's own builders."""
    if not dataset.get("hub") or "/" not in dataset["hub"]:
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi().dataset_info(dataset["hub"], revision=dataset.get("revision")).sha
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise GrampruneError(f"dataset {dataset['hub']} could not be found on the hub: {_first_line(error)}") from error


def about_documents(path: Path) -> dict[str, Any]:
    """What `write_documents` wrote about the texts: settings, revision, number, digest."""
    import pyarrow.parquet as parquet

    with _readable(path):
        return json.loads(parquet.read_metadata(path).metadata[b"gramprune"])


def read_documents(path: Path) -> list[str]:
    """The texts that `write_documents` wrote."""
    import pyarrow.parquet as parquet

    with _readable(path):
        return parquet.read_table(path, columns=["text"]).column(0).to_pylist()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors about a damaged file into a sentence."""
    import pyarrow as arrow

    try:
        yield
    except (OSError, arrow.ArrowException, KeyError) as error:
        raise GrampruneError(f"{path} cannot be read: {_first_line(error)} Delete it to have it made again.") from error


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if line.endswith(".") else f"{line}."
