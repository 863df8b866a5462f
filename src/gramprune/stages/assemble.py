"""The pruned checkpoint of a run: a copy of the model's folder with every pruned matrix in its place, and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.model.checkpoint import pruned_copy
from gramprune.model.manifest import manifest_of
from gramprune.model.places import Place
from gramprune.model.weights import Weights
from gramprune.stages.allocated import allocated
from gramprune.stages.pruned import dense_linear, patterns_of, pruned_linear
from gramprune.storage import artifacts, files
from gramprune.storage.artifacts import Artifact

RECIPE = "gramprune.json"


def assemble(
    model: Path,  # manifest
    weights: list[Path],  # per block: what the run made of it
    checkpoint: Path,  # output folder
    settings: dict[str, Any],  # run; patterns: per block, its pattern and granularity
    code: str,
    allocation: Path | None = None,  # that gives the linears their fractions; None: settings do
) -> str:
    """Write the checkpoint's folder, with what was done in `gramprune.json`; return the sparsity for people.

    Raises GrampruneError if a matrix' zeros are not exactly what the run says, and leaves no folder then.
    """
    manifest = manifest_of(model)
    dense = Weights(manifest["folder"])
    blocks = [artifacts.read(p, model=manifest["fingerprint"], block=i) for i, p in enumerate(weights)]
    checkpoint = Path(checkpoint)
    fingerprint = manifest["fingerprint"]
    patterns = [allocated(each, allocation, fingerprint, index) for index, each in enumerate(settings["patterns"])]
    with files.atomic_folder(checkpoint, checkpoint.parent / files.MARK, last=RECIPE) as folder:
        pruned_copy(Path(manifest["folder"]), folder, _stored(blocks, dense))
        matrices = check_zeros(folder, blocks, dense, patterns)
        total = sum(m["weights"] for m in matrices)
        zeros = sum(m["zeros"] for m in matrices)
        recipe = {
            "run": settings["run"],
            "model": manifest,
            "code": code,
            "sparsity": zeros / total,
            "pruned_weights": total,
            "zeros": zeros,
            "matrices": matrices,
            "blocks": [{"artifact": block.digest, **block.provenance} for block in blocks],
            "versions": files.versions(),
        }
        files.write_json(folder / RECIPE, recipe)
    return f"{100 * zeros / total:.4f} % of {total:,} weights in {len(matrices)} matrices are zero"


def _stored(blocks: list[Artifact], dense: Weights) -> Iterator[tuple[Place, Tensor]]:
    """Place and new values, in the orientation of the file, one matrix at a time; a vector as a matrix of one row."""
    for block in blocks:
        for name, linear in block.provenance["linears"].items():
            new, _ = pruned_linear(block, dense, name)
            yield linear["place"], new.T if linear["transposed"] else new
        for name, place in block.provenance.get("parameters", {}).items():
            yield place, block.read(f"{name}.values")[None]


def check_zeros(
    folder: Path, blocks: list[Artifact], dense: Weights, patterns: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Count the zeros of every matrix that can be pruned in the files of `folder`, in the stored dtype.

    Zero must be what the mask prunes, which must be exactly the pattern. A kept weight may be zero too, if it was in
    the dense model or the update made it so: `kept_zeros` counts them. A linear that the run leaves dense must be as it
    was, and other parameters as they were trained. Raises GrampruneError otherwise. The files are found and read here
    without what wrote them: by the package safetensors, from where transformers would load.
    """
    counted = []
    for index, (block, asked) in enumerate(zip(blocks, patterns, strict=True)):
        linears = {**block.provenance["linears"], **block.provenance["dense"]}
        pruned = patterns_of(asked, linears)
        for name, linear in linears.items():
            where = f"block {index}, {name}"
            if (name in pruned) != (name in block.provenance["linears"]):
                found, expected = ("dense", "pruned") if name in pruned else ("pruned", "dense")
                raise GrampruneError(
                    f"{where} is {found} in {block.path}, but the run has it {expected}: delete that file to have it "
                    "made again."
                )
            if name in pruned:
                expected, mask = pruned_linear(block, dense, name)
                pruned[name].check_mask(mask, where)
            else:
                expected = dense_linear(linear, dense)
                mask = torch.ones_like(expected, dtype=torch.bool)
            found = torch.cat([_loaded(folder, key, start, stop)[::step] for key, start, stop, step in linear["place"]])
            found = found.T if linear["transposed"] else found
            if (found[~mask] != 0).any() or ((found == 0) != (expected == 0)).any():
                raise GrampruneError(
                    f"{where}: {int((found == 0).sum()):,} of {found.numel():,} weights are zero in the checkpoint, "
                    f"but the run prunes {int((~mask).sum()):,} and these are not the same places: the artifact "
                    f"{block.path} is damaged; delete it to have it made again."
                )
            zeros = int((found == 0).sum())
            counted.append(
                {
                    "block": index,
                    "linear": name,
                    "pattern": str(pruned.get(name, "dense")),
                    "keys": list(dict.fromkeys(key for key, *_ in linear["place"])),
                    "weights": found.numel(),
                    "zeros": zeros,
                    "kept_zeros": zeros - int((~mask).sum()),
                }
            )
        for name, place in block.provenance.get("parameters", {}).items():
            found = torch.cat([_loaded(folder, key, start, stop)[::step] for key, start, stop, step in place])
            if not torch.equal(found, block.read(f"{name}.values")[None]):
                raise GrampruneError(
                    f"block {index}, {name}: the checkpoint does not hold what the artifact {block.path} has: it is "
                    "damaged; delete it to have it made again."
                )
    return counted


def _loaded(folder: Path, key: str, start: int, stop: int) -> Tensor:
    """Rows of a stored tensor, out of the file that transformers would take it from.

    Of one with three dimensions the rows of all matrices count; they are those of one of them.
    """
    name = "model.safetensors"
    if not (folder / name).exists():
        name = json.loads((folder / f"{name}.index.json").read_text())["weight_map"][key]
    found = safe_open(folder / name, "pt").get_slice(key)
    if len(found.get_shape()) == 1:
        return found[:][None]
    if len(found.get_shape()) == 2:
        return found[start:stop]
    each = found.get_shape()[1]
    return found[start // each][start % each : start % each + stop - start]
