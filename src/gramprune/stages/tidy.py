"""Remove what finished runs no longer need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TENSORS = {
    "inputs": ["inputs.safetensors"],
    "scratch": ["gram.safetensors", "weights.safetensors", "masks/*.safetensors"],
}


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
        found = [path for pattern in patterns for path in Path(results, trail).glob(f"block_*/{pattern}")]
        size = sum(path.stat().st_size for path in found)
        if missing:
            print(f"{trail}: not finished, {missing[0]} is missing; {size:,} bytes stay")
            continue
        for path in found:
            path.unlink()
        total += size
        print(f"{trail}: {size:,} bytes in {len(found)} files removed")
    print(f"freed {total / 2**30:.3f} GiB")
