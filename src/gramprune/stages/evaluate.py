"""Perplexity of a checkpoint folder, pruned or dense, on one dataset."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from gramprune import files, machine, sources
from gramprune.blocks import open_model
from gramprune.perplexity import perplexity, windows
from gramprune.stages.fetch import manifest_of


def evaluate_perplexity(
    model: Path,  # manifest of the dense model
    checkpoint: Path | None,  # folder of a pruned one; None: the dense model itself
    dataset: Path,
    output: Path,
    settings: dict[str, Any],  # dataset, separator, length, stride, windows, dtype
    code: str,
    device: str,
    batch_size: int,  # windows
) -> str:
    """Write perplexity, windows, tokens and what they depend on as JSON; return the perplexity for people."""
    started, device = time.monotonic(), machine.device(device)
    manifest = manifest_of(model)
    folder = Path(checkpoint or manifest["folder"])
    network, tokenizer, dtype = open_model(folder, settings["dtype"], device)
    tokens = tokenizer(settings["separator"].join(sources.read_documents(dataset)))["input_ids"]
    stride, name = settings["stride"], settings["dataset"]
    cut = windows(tokens, settings["length"], stride, settings["windows"], name)
    result = perplexity(network, cut, stride, batch_size, device)
    files.write_json(
        output,
        {
            "dataset": settings["dataset"],
            **result,
            "tokens_sha256": hashlib.sha256(cut.numpy().tobytes()).hexdigest(),
            "dtype": dtype,
            "batch_size": batch_size,
            "device": device,
            "settings": settings,
            "code": code,
            "model": manifest,
            "data": sources.about_documents(dataset),
            "versions": files.versions(),
            "hardware": machine.hardware(device),
            "seconds": round(time.monotonic() - started, 3),
            **machine.peak_memory(),
        },
    )
    return f"perplexity {result['perplexity']:.4f}"
