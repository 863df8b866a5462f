"""Mask refinement for all linears of a block: a better mask with as many zeros in every row and group."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gramprune import artifacts, machine
from gramprune.checkpoint import Weights
from gramprune.gram import layer_error
from gramprune.pruned import each_linear, masks_for, measures, plain, read_mask, write_metrics
from gramprune.refine import refine_mask
from gramprune.sparsity import Pattern
from gramprune.stages.fetch import manifest_of


def refine_block(
    model: Path,  # manifest
    grams: Path,
    mask: Path,  # to be improved
    output: Path,  # the same form: a refined mask is a mask
    metrics: Path,  # output
    block: int,
    labels: dict[str, str],  # what the metrics are found by
    settings: dict[str, Any],  # method, options, pattern, granularity, precision, target
    code: str,
    device: str,
) -> None:
    """Improve the mask of every linear of a block.

    Raises GrampruneError if the mask was made from other Gram matrices.
    """
    started, device = time.monotonic(), machine.device(device)
    manifest = manifest_of(model)
    source = artifacts.read(grams, stage="gram", model=manifest["fingerprint"], block=block)
    parents = {"gram": source, "mask": masks_for(mask, source)}
    weights = Weights(manifest["folder"])
    pattern = Pattern.parse(settings["pattern"], settings["granularity"])
    linears = source.provenance["linears"]
    about = {"model": manifest["fingerprint"], "block": block, "linears": linears}
    shapes = {f"{name}.mask": artifacts.mask_shape(*linear["shape"]) for name, linear in linears.items()}
    rows = []
    with artifacts.writing(output, shapes, artifacts.provenance("mask", settings, code, parents, **about)) as writer:
        for name, weight, gram in each_linear(source, weights, settings, device):
            began = time.monotonic()
            selected = read_mask(parents["mask"], name).to(device)
            refined, stats = refine_mask(weight, gram, selected, pattern, settings["method"], **settings["options"])
            writer.append(f"{name}.mask", artifacts.pack_mask(refined))
            before = layer_error(weight, weight.where(selected, 0), gram)
            after = measures(weight, weight.where(refined, 0), gram)
            row = {"linear": name, **plain(stats), **after, "error_before": before}  # the same measure for all methods
            rows.append({**row, "seconds": time.monotonic() - began})
    write_metrics(metrics, "refine", labels, started, rows)
