"""What the jobs of an experiment took: every job that ends well leaves a record beside its log.

Not Snakemake's benchmark files: those look at processes every few seconds, and a short job's memory is not in them.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gramprune import machine
from gramprune.errors import GrampruneError
from gramprune.experiment import outputs
from gramprune.storage import files

if TYPE_CHECKING:
    from gramprune.experiment.pipeline import Job, Key


@dataclass(frozen=True)
class Measured:
    """One finished job."""

    seconds: float  # from the begin of its process, imports included
    start_seconds: float  # of these, before its stage began
    cpu_seconds: float  # of all its threads
    host_mb: int  # MiB, the most it had at once
    ended: float  # seconds since the epoch


def record(log: Path, began: float, started: float) -> Measured:
    """Write, beside its log, what this process took as a job; it began and its stage started then (epoch seconds).

    Raises GrampruneError if that cannot be written.
    """
    ended, peak = time.time(), machine.peak_memory()["peak_host_mb"]
    taken = Measured(round(ended - began, 3), round(started - began, 3), round(time.process_time(), 3), peak, ended)
    files.write_json(place(log), asdict(taken))
    return taken


def place(log: Path | str) -> Path:
    """Where the record of the job with this log is."""
    return Path(log).with_suffix(".json")


def times(results: Path, jobs: dict[Key, Job]) -> dict[Key, Measured]:
    """The jobs that have been done, and what they took."""
    found = {}
    for key in jobs:
        path = results / "logs" / f"{outputs.stem(key)}.json"
        if path.exists() and (taken := _read(path)):
            found[key] = taken
    return found


def _read(path: Path) -> Measured | None:
    """A record; none where it is damaged, as if its job were not done."""
    with suppress(GrampruneError, TypeError):
        found = Measured(**files.read_json(path))
        if all(isinstance(value, int | float) and 0 <= value < math.inf for value in astuple(found)):
            return found
    return None
