"""Calibration tokens: once per model, shared by all runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gramprune.model.loading import open_tokenizer, vocabulary_of
from gramprune.model.manifest import manifest_of
from gramprune.storage import artifacts
from gramprune.text.calibration import sequences
from gramprune.text.store import Documents
from gramprune.text.tokens import Tokens

TOKEN = 32  # bytes of a long document per token of a sequence: its pieces have several windows each


def calibrate(
    model: Path,  # its manifest
    datasets: list[Path],  # in the order of the settings'
    output: Path,
    settings: dict[str, Any],  # datasets (each dataset, samples, separator), length, seed, pack, bos
    code: str,
) -> str:
    """Write `tokens` (samples, length) int64, and of every dataset how they were made; return that for people."""
    manifest = manifest_of(model)
    tokenizer, vocabulary = open_tokenizer(manifest["folder"]), vocabulary_of(manifest["folder"])
    length, shares = settings["length"], settings["datasets"]
    tokens: list[list[int]] = []
    data, said = {}, []
    for path, share in zip(datasets, shares, strict=True):
        name, samples = share["dataset"], share["samples"]
        documents = Documents(path, piece=TOKEN * length)
        texts = Tokens(documents, tokenizer, vocabulary, settings["bos"], share["separator"])
        seed = settings["seed"] if len(shares) == 1 else f"{settings['seed']} {name}"
        pack, front, end = settings["pack"], texts.front, texts.end()
        found = sequences(documents, texts.encode, samples, length, seed, name, pack, front, end)
        tokens += found.sequences
        made = {"samples": samples, "used_documents": found.documents, "packed": found.packed, "front": front}
        data[name] = {**documents.about, **made}
        before = f", {''.join(tokenizer.convert_ids_to_tokens(front))} before each" if front else ""
        said.append(
            f"{name}: {samples:,} sequences of {length:,} tokens out of {found.documents:,} documents"
            f"{', packed' * found.packed}{before}"
        )
    artifacts.write(
        output,
        {"tokens": torch.tensor(tokens, dtype=torch.int64)},
        artifacts.provenance("calibrate", settings, code, {}, model=manifest["fingerprint"], data=data),
    )
    return "; ".join(said)
