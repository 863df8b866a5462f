"""How the zeros of a run are divided among its linears: one JSON of fractions, which all its blocks then have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gramprune import machine
from gramprune.experiment import allocations
from gramprune.model.manifest import manifest_of
from gramprune.model.weights import Weights
from gramprune.pruning.allocation import Linear, allocate
from gramprune.pruning.sparsity import Pattern
from gramprune.stages.pruned import Grams, each_linear, grams_for
from gramprune.storage import files

DENSE = {"precision": "float32", "target": {"method": "own"}}  # the dense weights, as `each_linear` gives them


def allocate_blocks(
    model: Path,  # manifest
    tokens: Path,  # that the Gram matrices are of
    grams: list[Path],  # of the dense model, block by block; none with a file
    mapping: Path | None,  # the user's file
    output: Path,
    settings: dict[str, Any],  # method, options, granularity; blocks: the fractions that linears have without it
    code: str,
    device: str,
) -> str:
    """Write the fraction of zeros of every linear that has one; return the lowest and the highest for people.

    Raises GrampruneError for Gram matrices of something else, and for a file that gives no fractions.
    """
    manifest = manifest_of(model)
    about = tokens, manifest["fingerprint"], "dense"
    parents = [grams_for(path, *about, block, shared=grams) for block, path in enumerate(grams)]
    if mapping is not None:
        blocks = allocations.from_file(mapping, settings["blocks"])
    else:
        linears = _linears(parents, Weights(manifest["folder"]), settings, machine.device(device))
        blocks = [{} for _ in parents]
        for (block, name), fraction in allocate(linears, settings["method"], **settings["options"]).items():
            blocks[block][name] = fraction
    found = [fraction for block in blocks for fraction in block.values()]
    content = {
        "stage": "allocate",
        "settings": settings,
        "code": code,
        "model": manifest["fingerprint"],
        "inputs": {"gram": [gram.own.digest for gram in parents]},
        "blocks": blocks,
        "versions": files.versions(),
    }
    files.write_json(output, content)
    return f"{min(found):.4f} to {max(found):.4f} of the weights of {len(found)} linears"


def _linears(
    grams: list[Grams],
    weights: Weights,
    settings: dict[str, Any],
    device: str,
) -> Iterator[Linear]:
    """The dense model's linears that have a fraction, block by block; every expert is one."""
    for block, of_block in enumerate(grams):
        given = settings["blocks"][block]
        values = {name: given.get(name, given.get(name.rpartition(".")[0])) for name in of_block.linears}
        pruned = [name for name, value in values.items() if value is not None]
        for name, weight, gram in each_linear(of_block, weights, DENSE, device, pruned):
            yield Linear(block, name, weight, gram, Pattern.parse(values[name], settings["granularity"]))
