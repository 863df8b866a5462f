"""What the jobs of an experiment took, by Snakemake's benchmark files."""

from __future__ import annotations

import csv
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gramprune import pipeline
from gramprune.pipeline import Job, Key


@dataclass(frozen=True)
class Measured:
    """One finished job. Snakemake looks at processes every few seconds: of a short one it knows the time only."""

    seconds: float
    cpu_seconds: float | None
    host_mb: float | None
    ended: float  # seconds since the epoch


def times(results: Path, jobs: dict[Key, Job]) -> dict[Key, Measured]:
    """The jobs that have been done, and what they took."""
    found = {}
    for key in jobs:
        path = results / "benchmarks" / f"{pipeline.stem(key)}.tsv"
        with suppress(OSError, KeyError, ValueError, IndexError):  # not there, or not whole yet
            with open(path, encoding="utf-8") as file:
                row = list(csv.DictReader(file, delimiter="\t"))[-1]
            taken = (float(row["s"]), _number(row["cpu_time"]), _number(row["max_rss"]))
            found[key] = Measured(*taken, path.stat().st_mtime)
    return found


def _number(text: str) -> float | None:
    try:
        return float(text) or None
    except ValueError:  # "-" or "NA"
        return None
