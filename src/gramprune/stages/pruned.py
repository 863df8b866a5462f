"""The linears of one block as the stages between Gram matrices and checkpoint handle them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gramprune import machine
from gramprune.errors import GrampruneError
from gramprune.model import places
from gramprune.model.products import rows_of_part
from gramprune.model.weights import Weights
from gramprune.pruning.bias import centred, compensated
from gramprune.pruning.gram import Gram, layer_error
from gramprune.pruning.numerics import finite
from gramprune.pruning.sparsity import Pattern
from gramprune.pruning.target import retarget_weight
from gramprune.storage import artifacts, files
from gramprune.storage.artifacts import Artifact


@dataclass(frozen=True)
class Grams:
    """The linears that a block prunes, and the Gram matrices of their inputs."""

    own: Artifact  # of what enters the block in the run
    shared: dict[int, Artifact] = field(default_factory=dict)
    """By block, of what enters it in the dense model: all blocks that work with what this one prunes for them too."""

    @property
    def parents(self) -> dict[str, Artifact]:
        """What is read, for an artifact's header."""
        return {"gram": self.own, **{f"gram_{block:03d}": artifact for block, artifact in self.shared.items()}}

    @cached_property
    def linears(self) -> dict[str, dict[str, Any]]:
        """Their descriptions; `shared` in one says which blocks work with it, the first of which prunes it."""
        block = self.own.provenance["block"]
        given = self.shared[block].provenance["linears"] if self.shared else {}
        common = {name: linear for name, linear in given.items() if linear.get("shared", [None])[0] == block}
        own = self.own.provenance["linears"].items()
        return {name: linear for name, linear in own if "shared" not in linear} | common

    def terms(self, name: str) -> tuple[tuple[str, str], ...]:
        """Which Gram matrices a linear's is the sum of: those of `parents`, and names in them."""
        linear = self.linears[name]
        if "shared" not in linear:
            return (("gram", linear["gram"]),)
        return tuple(
            (f"gram_{block:03d}", self.shared[block].provenance["linears"][name]["gram"]) for block in linear["shared"]
        )

    def read(self, terms: tuple[tuple[str, str], ...], what: str, device: str, dtype: torch.dtype) -> Tensor:
        """A Gram matrix, or what else is kept of its inputs: `.sum`, `.cross`."""
        read = (self.parents[parent].read(f"{name}{what}").to(device, dtype) for parent, name in terms)
        total = next(read)
        for another in read:
            total.add_(another)
        return total


def patterns_of(settings: dict[str, Any], linears: Iterable[str]) -> dict[str, Pattern]:
    """The pattern of every linear that is pruned; others stay dense.

    settings: pattern, one value for all linears of the block or a value by linear, where "dense" is one; granularity.
    """
    given, granularity = settings["pattern"], settings["granularity"]
    # A mapping names experts of a kind once.
    values: dict[str, Any] = {
        name: given.get(name, given.get(name.rpartition(".")[0])) if isinstance(given, dict) else given
        for name in linears
    }
    return {
        name: Pattern.parse(value, "group" if ":" in str(value) else granularity)
        for name, value in values.items()
        if value != "dense"
    }


def divided(linears: dict[str, Any], pruned: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The linears of a block for an artifact's header: those that are pruned, and those that this run leaves dense."""
    pruned = set(pruned)
    return {
        "linears": {name: linear for name, linear in linears.items() if name in pruned},
        "dense": {name: linear for name, linear in linears.items() if name not in pruned},
    }


def each_linear(
    grams: Grams,
    weights: Weights,
    settings: dict[str, Any],  # precision, target, bias
    device: str,
    pruned: Iterable[str],  # names; others are left out
) -> Iterator[tuple[str, Tensor, Gram]]:
    """Name, weight (out, in) and Gram matrix of linears of a block, in the precision that is asked for.

    The weight is the one that the pruned weight is to be like: the dense one, or what the target makes of it; for one
    that several blocks work with, and for experts, the dense one. Where a linear's bias makes up for the mean of its
    outputs, the Gram matrix is that of its inputs minus their mean.
    Linears that share a matrix come together: it is read once, its factorisations are computed once, and one is in
    memory at a time.
    """
    dtype, target = getattr(torch, settings["precision"]), settings["target"]
    block, linears = grams.own.provenance["block"], divided(grams.linears, pruned)["linears"]
    having: dict[tuple, list[str]] = defaultdict(list)
    for name in linears:
        having[grams.terms(name), compensates(linears[name], settings)].append(name)
    for (terms, around_mean), names in sorted(having.items()):
        first, where = linears[names[0]], f"block {block}, {names[0]}"
        sums = grams.read(terms, ".sum", device, dtype)
        tokens = None if "fallback" in first else _tokens(grams, names[0])
        gram = Gram(grams.read(terms, "", device, dtype), where, sums, tokens)
        gram = centred(gram) if around_mean else gram
        # A token may go to other experts in the dense model; what several blocks share sees the dense model's inputs.
        aims = target["method"] == "dense" and first["part"] is None and "shared" not in first
        cross = grams.read(terms, ".cross", device, dtype) if aims else None
        for name in names:
            gram.name = f"block {block}, {name}"
            dense = dense_linear(linears[name], weights).to(device, dtype)
            yield name, dense if cross is None else retarget_weight(dense, gram, cross, target["pull"]), gram
            del dense  # before the next is read


def compensates(linear: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a linear's bias is to make up for the mean of its outputs."""
    return settings.get("bias") == "compensated" and "bias" in linear and "shared" not in linear


def new_bias(grams: Grams, name: str, weights: Weights, weight: Tensor, new: Tensor) -> Tensor:
    """The bias (out,), in the stored dtype, of a linear whose weight (out, in) has become `new`."""
    linear = grams.linears[name]
    mean = grams.read(grams.terms(name), ".sum", str(weight.device), torch.float64) / _tokens(grams, name)
    bias = places.read(linear["bias_place"], weights)[0]
    made = compensated(bias.to(weight.device), weight, new, mean)
    return fitting(made, bias.dtype, f"block {grams.own.provenance['block']}, {linear['bias']}")


def _tokens(grams: Grams, name: str) -> int:
    """How many tokens a linear's Gram matrix is of; a stand-in has no number."""
    return sum(grams.parents[parent].provenance["linears"][name]["tokens"] for parent, _ in grams.terms(name))


def dense_linear(linear: dict[str, Any], weights: Weights) -> Tensor:
    """A linear's dense weight (out, in) in the stored dtype. linear: its description in an artifact."""
    stored = places.read(linear["place"], weights)
    return stored.T.contiguous() if linear["transposed"] else stored


def pruned_linear(artifact: Artifact, weights: Weights, name: str) -> tuple[Tensor, Tensor]:
    """Pruned weight (out, in) in the stored dtype, and mask (out, in) bool of one linear of a block.

    artifact: a run's weights, or a mask alone: a run without an update is its mask on the dense weights.
    """
    mask = read_mask(artifact, name)
    if artifact.provenance["stage"] == "mask":
        return dense_linear(artifact.provenance["linears"][name], weights).where(mask, 0), mask
    return artifact.read(f"{name}.weight"), mask


def turned(linear: dict[str, Any], matrix: Tensor) -> Tensor:
    """A weight (out, in) as the model's parameter has it, or the other way round."""
    return matrix.T if linear["transposed"] != linear["turned"] else matrix


def put_pruned(made: Iterable[Artifact], weights: Weights, block: int, parameter: str, values: Tensor) -> None:
    """Put what a run has made of a block's parameter in the place of its dense values, in the stored dtype.

    made: of this block, and of earlier ones that prune what it works with.
    """
    for artifact in made:
        own = artifact.provenance["block"] == block
        for name, linear in artifact.provenance["linears"].items():
            if linear["parameter"] == parameter and (own or block in linear.get("shared", ())):
                part = rows_of_part(values, linear["part"], linear["parts"])
                part.copy_(turned(linear, pruned_linear(artifact, weights, name)[0]))
        if own and parameter in artifact.provenance.get("parameters", ()):
            values.copy_(artifact.read(f"{parameter}.values"))


def owned_by(owners: Iterable[Path], model: str) -> dict[str, Artifact]:
    """What a run made of earlier blocks that prune for a later one, as that one's parents."""
    found = [artifacts.read(path, model=model) for path in owners]
    return {f"weights_{artifact.provenance['block']:03d}": artifact for artifact in found}


def block_shapes(
    linears: dict[str, Any],  # that are pruned
    parameters: dict[str, places.Place],  # others that have changed
    weights: Weights,
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtypes and shapes of what is written of a pruned block: weights (out, in), masks as bits, other parameters."""
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, linear in linears.items():
        shapes[f"{name}.mask"] = artifacts.mask_shape(*linear["shape"])
    for name, linear in linears.items():
        shapes[f"{name}.weight"] = (places.dtype(linear["place"], weights), tuple(linear["shape"]))
    for name, place in parameters.items():
        shapes[f"{name}.values"] = (places.dtype(place, weights), weights.shape(place[0][0]))
    return shapes


def fitting(new: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    """Values in the stored dtype. Raises GrampruneError if it cannot hold them."""
    new = new.to(dtype)
    if not finite(new):
        raise GrampruneError(f"{where}: the updated weights overflow in {new.dtype}; raise the damping.")
    return new


def read_mask(artifact: Artifact, name: str) -> Tensor:
    """The mask (out, in) bool of a linear, from an artifact of masks or of weights."""
    return artifact.read_mask(f"{name}.mask", artifact.provenance["linears"][name]["shape"][1])


def grams_for(
    path: Path,
    tokens: Path,
    model: str,
    trail: str,
    block: int,
    shared: Iterable[Path] = (),  # the dense model's, of all blocks that work with what this one prunes
) -> Grams:
    """A block's Gram matrices. Raises GrampruneError unless they are of this model, calibration, trail and block."""
    about = {"stage": "gram", "model": model}
    about["calibration"] = artifacts.read(tokens, stage="calibrate", model=model).digest
    dense = [artifacts.read(each, trail="dense", **about) for each in shared]
    own = artifacts.read(path, trail=trail, block=block, **about)
    return Grams(own, {artifact.provenance["block"]: artifact for artifact in dense})


def masks_for(path: Path, grams: Grams) -> Artifact:
    """A block's masks. Raises GrampruneError unless they were made from these Gram matrices."""
    about = grams.own.provenance
    masks = artifacts.read(path, stage="mask", model=about["model"], block=about["block"])
    for parent, artifact in grams.parents.items():
        made_from = masks.provenance["inputs"].get(parent)
        if made_from != artifact.digest:
            raise GrampruneError(
                f"{path} was made from a Gram matrix with digest {made_from}, but {artifact.path} has "
                f"{artifact.digest}: one of them was put there by hand: delete both to have them made again."
            )
    return masks


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


def plain(stats: dict[str, Any]) -> dict[str, Any]:
    """A method's statistics for a table: numbers per row (out,) become total, mean and maximum, truths a share."""
    found = {}
    for name, value in stats.items():
        if not isinstance(value, Tensor):
            found[name] = value
        elif value.dtype == torch.bool:
            found[name] = value.double().mean().item()
        else:
            found |= {name: value.sum().item(), f"{name}_mean": value.double().mean().item()}
            found[f"{name}_max"] = value.max().item()
    return found


def write_metrics(
    path: Path,
    stage: str,
    labels: dict[str, str],  # model, run or trail, block, mask: what the rows are found by
    started: float,  # time.monotonic() at the stage's begin
    linears: list[dict[str, Any]],  # one row each
    **whole: Any,  # what was measured of the block as a whole
) -> str:
    """What a stage measured of a block, beside its tensors; returns the errors for people."""
    seconds = round(time.monotonic() - started, 3)
    content = {
        "stage": stage,
        "labels": labels,
        "seconds": seconds,
        **machine.peak_memory(),
        **whole,
        "linears": linears,
    }
    files.write_json(path, content)
    errors = [linear["relative_error"] for linear in linears if "relative_error" in linear]
    return f"relative layer errors {min(errors):.4g} to {max(errors):.4g}" if errors else ""
