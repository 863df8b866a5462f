"""Masks for all linears of a block: selected, or refined from masks that were."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gramprune import machine
from gramprune.model.manifest import manifest_of
from gramprune.model.weights import Weights
from gramprune.pruning.gram import layer_error
from gramprune.pruning.masks import select_mask
from gramprune.pruning.refine import refine_mask
from gramprune.stages.allocated import allocated
from gramprune.stages.pruned import (
    divided,
    each_linear,
    grams_for,
    masks_for,
    measures,
    patterns_of,
    plain,
    read_mask,
    write_metrics,
)
from gramprune.storage import artifacts


def mask_block(
    model: Path,  # manifest
    tokens: Path,  # that the Gram matrices are of
    grams: Path,
    mask: Path | None,  # to be refined; None: one is selected
    output: Path,  # `<linear>.mask` (out, ⌈in/8⌉) uint8, bits
    metrics: Path,  # output
    trail: str,  # where the activations came from
    block: int,
    labels: dict[str, str],  # what the metrics are found by
    settings: dict[str, Any],  # method, options, pattern, granularity, precision, target
    code: str,
    device: str,
    shared: Iterable[Path] = (),  # the dense model's Gram matrices of all blocks that work with what this one prunes
    allocation: Path | None = None,  # that gives the linears their fractions; None: settings do
) -> str:
    """Choose the mask of every linear of a block from its dense weight and Gram matrix, or improve the one it has.

    Raises GrampruneError for Gram matrices of something else, and a mask that was made from others.
    """
    started, device = time.monotonic(), machine.device(device)
    manifest = manifest_of(model)
    settings = allocated(settings, allocation, manifest["fingerprint"], block)
    found = grams_for(grams, tokens, manifest["fingerprint"], trail, block, shared)
    parents = dict(found.parents)
    if mask is not None:
        parents["mask"] = masks_for(mask, found)
    weights = Weights(manifest["folder"])
    linears = found.linears
    patterns = patterns_of(settings, linears)
    about = {"model": manifest["fingerprint"], "block": block, **divided(linears, patterns)}
    shapes = {f"{name}.mask": artifacts.mask_shape(*linears[name]["shape"]) for name in patterns}
    method, options = settings["method"], settings["options"]
    rows = []
    with artifacts.writing(output, shapes, artifacts.provenance("mask", settings, code, parents, **about)) as writer:
        for name, weight, gram in each_linear(found, weights, settings, device, patterns):
            began, pattern = time.monotonic(), patterns[name]
            if mask is None:
                chosen, measured = select_mask(weight, gram, pattern, method, **options), {}
            else:
                given = read_mask(parents["mask"], name).to(device)
                chosen, stats = refine_mask(weight, gram, given, pattern, method, **options)
                measured = {**plain(stats), "error_before": layer_error(weight, weight.where(given, 0), gram)}
            writer.append(f"{name}.mask", artifacts.pack_mask(chosen))
            measured |= measures(weight, weight.where(chosen, 0), gram)  # the same error for all methods
            rows.append({"linear": name, **measured, "seconds": time.monotonic() - began})
    return write_metrics(metrics, "mask" if mask is None else "refine", labels, started, rows)
