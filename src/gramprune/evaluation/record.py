"""What every evaluation of a checkpoint writes beside its figures: what they depend on, and what they took."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gramprune import machine
from gramprune.storage import files


def write_evaluation(
    path: Path,
    figures: dict[str, Any],
    manifest: dict[str, Any],  # of the dense model
    settings: dict[str, Any],
    code: str,
    started: float,  # time.monotonic() at the stage's begin
    device: str,
    dtype: str,  # of forward passes
    batch_size: int,
    memory: str,  # whole or streamed; it changes no figure but for rounding on another device
) -> None:
    """Write figures and all that they depend on as JSON."""
    made = {"dtype": dtype, "batch_size": batch_size, "memory": memory, "device": device}
    made |= {"settings": settings, "code": code, "model": manifest}
    made |= {"versions": files.versions(), "hardware": machine.hardware(device)}
    seconds = round(time.monotonic() - started, 3)
    files.write_json(path, {**figures, **made, "seconds": seconds, **machine.peak_memory()})
