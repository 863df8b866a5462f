"""The linears of one block as the stages between Gram matrices and checkpoint handle them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from gramprune import files, machine
from gramprune.artifacts import Artifact
from gramprune.checkpoint import Weights
from gramprune.gram import Gram, layer_error


def each_linear(grams: Artifact, device: str) -> Iterator[tuple[str, dict[str, Any], Gram]]:
    """Name, description and Gram matrix of every linear of a block; those that share a matrix come together.

    So a matrix is read once, its factorisations are computed once, and one is in memory at a time.
    """
    linears = grams.provenance["linears"]
    for first in grams.names:
        gram = Gram(grams.read(first).to(device), f"block {grams.provenance['block']}, {first}")
        for name, linear in linears.items():
            if linear["gram"] == first:
                gram.name = f"block {grams.provenance['block']}, {name}"
                yield name, linear, gram


def dense_linear(linear: dict[str, Any], weights: Weights) -> Tensor:
    """A linear's dense weight (out, in) in the stored dtype. linear: its description in an artifact."""
    stored = weights.read(linear["key"])
    return stored.T.contiguous() if linear["transposed"] else stored


def pruned_linear(artifact: Artifact, weights: Weights, name: str) -> tuple[Tensor, Tensor]:
    """Pruned weight (out, in) in the stored dtype, and mask (out, in) bool of one linear of a block.

    artifact: a run's weights, or a mask alone: a run without an update is its mask on the dense weights.
    """
    mask = read_mask(artifact, name)
    if artifact.provenance["stage"] == "mask":
        return dense_linear(artifact.provenance["linears"][name], weights).where(mask, 0), mask
    return artifact.read(f"{name}.weight"), mask


def read_mask(artifact: Artifact, name: str) -> Tensor:
    """The mask (out, in) bool of a linear, from an artifact of masks or of weights."""
    return artifact.read_mask(f"{name}.mask", artifact.provenance["linears"][name]["shape"][1])


def measures(dense: Tensor, new: Tensor, gram: Gram) -> dict[str, float]:
    """Layer error, the same relative to the layer's output, and sparsity of one pruned linear."""
    error = layer_error(dense, new, gram)
    output = layer_error(dense, dense.new_zeros(()).expand(dense.shape), gram)
    return {
        "rows": dense.shape[0],
        "columns": dense.shape[1],
        "error": error,
        "relative_error": error / output if output else 0.0,
        "sparsity": 1 - int(new.count_nonzero()) / new.numel(),
        "dead_inputs": int(gram.dead.sum()),
    }


def write_metrics(
    path: Path,
    stage: str,
    labels: dict[str, str],  # model, run or trail, block, mask: what the rows are found by
    started: float,  # time.monotonic() at the stage's begin
    linears: list[dict[str, Any]],  # one row each
) -> None:
    """What a stage measured of a block, beside its tensors."""
    seconds = round(time.monotonic() - started, 3)
    content = {"stage": stage, "labels": labels, "seconds": seconds, **machine.peak_memory(), "linears": linears}
    files.write_json(path, content)
