"""Weight update for all linears of a block: for a given mask, or together with the choice of the mask."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gramprune import artifacts, machine
from gramprune.checkpoint import Weights
from gramprune.errors import GrampruneError
from gramprune.joint import prune_weight
from gramprune.numerics import finite
from gramprune.pruned import dense_linear, each_linear, measures, read_mask, write_metrics
from gramprune.sparsity import Pattern
from gramprune.stages.fetch import manifest_of
from gramprune.updates import update_weight


def update_block(
    model: Path,  # manifest
    grams: Path,
    mask: Path | None,  # None: a joint method chooses mask and weights
    output: Path,  # `<linear>.weight` (out, in) in the checkpoint's dtype, `<linear>.mask` bits
    metrics: Path,  # output
    block: int,
    labels: dict[str, str],  # what the metrics are found by
    settings: dict[str, Any],  # method, options; for a joint method also pattern, granularity
    code: str,
    device: str,
) -> None:
    """Compute the pruned weights of every linear of a block.

    Raises GrampruneError if the mask was made from other Gram matrices, or weights do not fit the stored dtype.
    """
    started, device = time.monotonic(), machine.device(device)
    manifest = manifest_of(model)
    fingerprint = manifest["fingerprint"]
    parents = {"gram": artifacts.read(grams, stage="gram", model=fingerprint, block=block)}
    if mask is not None:
        parents["mask"] = artifacts.read(mask, stage="mask", model=fingerprint, block=block)
        made_from = parents["mask"].provenance["inputs"]["gram"]
        if made_from != parents["gram"].digest:
            raise GrampruneError(
                f"{mask} was made from a Gram matrix with digest {made_from}, but {grams} has "
                f"{parents['gram'].digest}: delete the mask to have it made again."
            )
    weights = Weights(manifest["folder"])
    linears = parents["gram"].provenance["linears"]
    shapes = {f"{name}.mask": artifacts.mask_shape(*linear["shape"]) for name, linear in linears.items()}
    for name, linear in linears.items():
        shapes[f"{name}.weight"] = (weights.dtype(linear["key"]), tuple(linear["shape"]))
    about = {"model": fingerprint, "block": block, "linears": linears, "damping": {}}
    written = artifacts.provenance("weights", settings, code, parents, **about)
    rows = []
    with artifacts.writing(output, shapes, written) as writer:
        for name, linear, gram in each_linear(parents["gram"], device):
            began = time.monotonic()
            stored = dense_linear(linear, weights)
            dense = stored.to(device, gram.matrix.dtype)
            if mask is None:
                pattern = Pattern.parse(settings["pattern"], settings["granularity"])
                kept, new, stats = prune_weight(dense, gram, pattern, settings["method"], **settings["options"])
            else:
                kept = read_mask(parents["mask"], name).to(device)
                new, stats = update_weight(dense, gram, kept, settings["method"], **settings["options"])
            new = new.to(stored.dtype)
            if not finite(new):
                raise GrampruneError(f"{gram.name}: the updated weights overflow in {stored.dtype}; raise the damping.")
            writer.append(f"{name}.weight", new)
            writer.append(f"{name}.mask", artifacts.pack_mask(kept))
            if "damping" in stats:
                written["damping"][name] = stats["damping"]
            before = measures(dense, dense.where(kept, 0), gram)["error"]
            after = measures(dense, new.to(dense.dtype), gram)
            rows.append({"linear": name, **after, "error_before": before, **stats, "seconds": time.monotonic() - began})
    write_metrics(metrics, "update", labels, started, rows)
