"""Calibration tokens: once per model, shared by all runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gramprune.model.loading import open_tokenizer
from gramprune.stages.fetch import manifest_of
from gramprune.storage import artifacts
from gramprune.text import sources
from gramprune.text.calibration import sequences


def calibrate(model: Path, dataset: Path, output: Path, settings: dict[str, Any], code: str) -> None:
    """Write `tokens` (samples, length) int64. settings: dataset, samples, length, seed."""
    manifest = manifest_of(model)
    tokenizer = open_tokenizer(manifest["folder"])
    tokens = sequences(
        sources.read_documents(dataset),
        lambda text: tokenizer(text)["input_ids"],
        settings["samples"],
        settings["length"],
        settings["seed"],
        settings["dataset"],
    )
    artifacts.write(
        output,
        {"tokens": torch.tensor(tokens, dtype=torch.int64)},
        artifacts.provenance(
            "calibrate", settings, code, {}, model=manifest["fingerprint"], data=sources.about_documents(dataset)
        ),
    )
