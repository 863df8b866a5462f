"""Weight update for all linears of a block: for a given mask, or together with the choice of the mask."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gramprune import machine
from gramprune.model import places
from gramprune.model.manifest import manifest_of
from gramprune.model.weights import Weights
from gramprune.pruning.gram import layer_error
from gramprune.pruning.joint import prune_weight
from gramprune.pruning.updates import update_weight
from gramprune.stages.allocated import allocated
from gramprune.stages.pruned import (
    block_shapes,
    compensates,
    divided,
    each_linear,
    fitting,
    grams_for,
    masks_for,
    measures,
    new_bias,
    patterns_of,
    plain,
    read_mask,
    write_metrics,
)
from gramprune.storage import artifacts


def update_block(
    model: Path,  # manifest
    tokens: Path,  # that the Gram matrices are of
    grams: Path,
    mask: Path | None,  # None: a joint method chooses mask and weights
    output: Path,  # `<linear>.weight` (out, in) in the checkpoint's dtype, `<linear>.mask` bits, `<bias>.values`
    metrics: Path,  # output
    trail: str,  # where the activations came from
    block: int,
    labels: dict[str, str],  # what the metrics are found by
    settings: dict[str, Any],  # method, options, precision, target, bias; for a joint method also pattern, granularity
    code: str,
    device: str,
    shared: Iterable[Path] = (),  # the dense model's Gram matrices of all blocks that work with what this one prunes
    allocation: Path | None = None,  # that gives the linears their fractions; None: settings do, or the mask has them
) -> str:
    """Compute the pruned weights of every linear of a block.

    Raises GrampruneError for Gram matrices of something else, a mask that was made from others, and weights that do
    not fit the stored dtype.
    """
    started, device = time.monotonic(), machine.device(device)
    manifest = manifest_of(model)
    fingerprint = manifest["fingerprint"]
    found = grams_for(grams, tokens, fingerprint, trail, block, shared)
    parents = dict(found.parents)
    if mask is not None:
        parents["mask"] = masks_for(mask, found)
    weights = Weights(manifest["folder"])
    linears = found.linears
    if mask is None:
        settings = allocated(settings, allocation, fingerprint, block)
    patterns = patterns_of(settings, linears) if mask is None else {}
    pruned = parents["mask"].provenance["linears"] if mask is not None else patterns
    about = {"model": fingerprint, "block": block, **divided(linears, pruned), "damping": {}}
    moved = {name: linears[name] for name in pruned if compensates(linears[name], settings)}
    about["parameters"] = {linear["bias"]: linear["bias_place"] for linear in moved.values()}
    shapes = block_shapes(about["linears"], about["parameters"], weights)
    written = artifacts.provenance("weights", settings, code, parents, **about)
    rows = []
    with artifacts.writing(output, shapes, written) as writer:
        for name, weight, gram in each_linear(found, weights, settings, device, pruned):
            began = time.monotonic()
            if mask is None:
                kept, new, stats = prune_weight(weight, gram, patterns[name], settings["method"], **settings["options"])
            else:
                kept = read_mask(parents["mask"], name).to(device)
                new, stats = update_weight(weight, gram, kept, settings["method"], **settings["options"])
            new = fitting(new, places.dtype(linears[name]["place"], weights), gram.name)
            writer.append(f"{name}.weight", new)
            writer.append(f"{name}.mask", artifacts.pack_mask(kept))
            if name in moved:
                made = new_bias(found, name, weights, weight, new)
                writer.append(f"{moved[name]['bias']}.values", made)
            if "damping" in stats:
                written["damping"][name] = stats["damping"]
            before = layer_error(weight, weight.where(kept, 0), gram)
            after = measures(weight, new.to(weight.dtype), gram)
            row = {"linear": name, **after, "error_before": before, **plain(stats)}
            rows.append({**row, "seconds": time.monotonic() - began})
    return write_metrics(metrics, "update", labels, started, rows)
