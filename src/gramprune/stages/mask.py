"""Mask selection for all linears of a block."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gramprune import artifacts, machine
from gramprune.checkpoint import Weights
from gramprune.masks import select_mask
from gramprune.pruned import each_linear, measures, write_metrics
from gramprune.sparsity import Pattern
from gramprune.stages.fetch import manifest_of


def mask_block(
    model: Path,  # manifest
    grams: Path,
    output: Path,  # `<linear>.mask` (out, ⌈in/8⌉) uint8, bits
    metrics: Path,  # output
    block: int,
    labels: dict[str, str],  # what the metrics are found by
    settings: dict[str, Any],  # method, options, pattern, granularity, precision, target
    code: str,
    device: str,
) -> None:
    """Choose the mask of every linear of a block from its dense weight and Gram matrix."""
    started, device = time.monotonic(), machine.device(device)
    manifest = manifest_of(model)
    source = artifacts.read(grams, stage="gram", model=manifest["fingerprint"], block=block)
    weights = Weights(manifest["folder"])
    pattern = Pattern.parse(settings["pattern"], settings["granularity"])
    linears = source.provenance["linears"]
    about = {"model": manifest["fingerprint"], "block": block, "linears": linears}
    shapes = {f"{name}.mask": artifacts.mask_shape(*linear["shape"]) for name, linear in linears.items()}
    rows = []
    with artifacts.writing(
        output, shapes, artifacts.provenance("mask", settings, code, {"gram": source}, **about)
    ) as writer:
        for name, weight, gram in each_linear(source, weights, settings, device):
            began = time.monotonic()
            mask = select_mask(weight, gram, pattern, settings["method"], **settings["options"])
            writer.append(f"{name}.mask", artifacts.pack_mask(mask))
            pruned = weight.where(mask, 0)
            rows.append({"linear": name, **measures(weight, pruned, gram), "seconds": time.monotonic() - began})
    write_metrics(metrics, "mask", labels, started, rows)
