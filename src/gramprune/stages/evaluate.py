"""Perplexity of a checkpoint folder, pruned or dense, on one dataset."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from gramprune import machine
from gramprune.evaluation.perplexity import perplexity, windows
from gramprune.evaluation.record import write_evaluation
from gramprune.model.loading import open_model
from gramprune.stages.fetch import manifest_of
from gramprune.text import sources


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
    digest = hashlib.sha256(cut.numpy().tobytes()).hexdigest()
    figures = {"dataset": name, **result, "tokens_sha256": digest, "data": sources.about_documents(dataset)}
    write_evaluation(output, figures, manifest, settings, code, started, device, dtype, batch_size)
    return f"perplexity {result['perplexity']:.4f}"
