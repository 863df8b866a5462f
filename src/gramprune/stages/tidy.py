"""Remove what finished runs no longer need."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

TENSORS = {
    "inputs": ["inputs.safetensors"],
    "scratch": ["gram.safetensors", "weights.safetensors", "reconstructed.safetensors", "masks/*.safetensors"],
}
LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


def tidy(results: Path, settings: dict[str, Any], code: str) -> None:
    """Remove hidden states, Gram matrices, masks and weights of trails that are finished.

    settings: keep, with `gram` only hidden states go; ends, from a trail's folder in `results` (`<model>/<run>` or
    `<model>/dense`) to the checkpoints and evaluations that make it finished. Nothing runs again: a job is needed for
    what is missing only where something behind it is to be made anew.
    """
    patterns = TENSORS["inputs"] + (TENSORS["scratch"] if settings["keep"] != "gram" else [])
    total = 0
    for trail, files in settings["ends"].items():
        missing = [name for name in files if not Path(results, name).exists()]
        there = [path for pattern in patterns for path in sorted(Path(results, trail).glob(f"block_*/{pattern}"))]
        found = [path for path in there if is_ours(path)]
        size = sum(path.stat().st_size for path in found)
        if missing:
            print(f"{trail}: not finished, {missing[0]} is missing; {size:,} bytes stay")
            continue
        for path in found:
            path.unlink()
        total += size
        print(f"{trail}: {size:,} bytes in {len(found)} files removed")
        if others := [path for path in there if path not in found]:
            print(f"{trail}: {len(others)} files stay that gramprune has not made, or not whole: {others[0]}")
    print(f"freed {total / 2**30:.3f} GiB")


def is_ours(path: Path) -> bool:
    """Whether a safetensors file says in its header what we made it from; without torch, which takes seconds."""
    with suppress(OSError, ValueError, LookupError, TypeError), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return "gramprune" in json.loads(file.read(min(length, LARGEST_HEADER)))["__metadata__"]
    return False
