"""Fetch a dataset's documents. The stage may use the network; what follows finds a local file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from gramprune.text import read, store

NOTED = {
    "null_rows": "rows without a value left out",
    "empty_rows": "empty rows left out",
    "empty_texts": "empty texts",
    "surrogates": "halves of characters replaced",
}


def fetch_data(output: Path, name: str, settings: dict[str, Any], code: str) -> str:
    """Write a dataset's documents as Parquet; return for people how many, and what was left out.

    settings: as in the configuration's `datasets`.
    """
    revision = read.revision(settings)
    about = {"stage": "fetch_data", "dataset": name, "settings": settings, "code": code, "revision": revision}
    noted: Counter[str] = Counter()
    documents = read.documents({**settings, "revision": revision or settings["revision"]}, name, noted)
    written = store.write(Path(output), documents, about, noted)
    found = [f"{written['documents']:,} documents", *(f"{noted[key]:,} {NOTED[key]}" for key in NOTED if noted[key])]
    return f"{', '.join(found)}, sha256 {written['sha256'][:16]}"
