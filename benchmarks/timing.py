"""Seconds of a call, on a device that works beside Python."""

import time
from collections.abc import Callable
from typing import Any

import torch


def timed(call: Callable, device: str, repeats: int = 3) -> tuple[float, Any]:
    """Seconds of the fastest of some calls, and what the last returned."""
    best = float("inf")
    for _ in range(repeats):
        if device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        result = call()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best, result
