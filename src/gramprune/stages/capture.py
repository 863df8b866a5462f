"""Activations that enter a block, and one Gram matrix per distinct input of its linears.

Two passes over the calibration tokens, each with one block in memory: the block before, as the run left it, gives
the hidden states that enter this block; then this block, still dense, shows what enters its linears. Hidden states
stream from file to file, so memory does not grow with the number of samples or blocks. For runs that aim at the dense
model's outputs the second pass also sees what enters the same block of the dense model.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gramprune import machine
from gramprune.errors import GrampruneError
from gramprune.model.blocks import Blocks, Flow, open_blocks
from gramprune.model.keys import Keys
from gramprune.model.products import Matrix, Products, name_of, part_name, rows_of_part
from gramprune.progress import progress
from gramprune.pruning.gram import accumulate
from gramprune.pruning.numerics import finite
from gramprune.stages.experts import fall_back
from gramprune.stages.fetch import manifest_of
from gramprune.stages.pruned import dense_linear, pruned_linear, write_metrics
from gramprune.storage import artifacts
from gramprune.storage.artifacts import Artifact

log = logging.getLogger(__name__)


def capture(
    model: Path,  # manifest
    tokens: Path,  # calibration tokens
    before: Path | None,  # hidden states that entered the block before; None for block 0
    weights: Path | None,  # what a run made of the block before; None: it stays dense
    dense: Path | None,  # hidden states that enter this block of the dense model; None: no cross-Gram matrices
    inputs: Path,  # output: `hidden` (samples, length, width) in the dtype that the model passes on
    grams: Path,  # output: Gram matrices, and what else `_observe` keeps of the linears' inputs
    metrics: Path,  # output
    trail: str,
    block: int,
    labels: dict[str, str],  # what the metrics are found by
    settings: dict[str, Any],  # dtype, accumulate, exclude
    code: str,
    device: str,
    batch_size: int,  # sequences
) -> str:
    """Write the hidden states that enter `block`, and the Gram matrices of its linears; return the speed for people.

    Raises GrampruneError for activations that are not finite, and for artifacts of another model or block.
    """
    started, device = time.monotonic(), machine.device(device)
    manifest = manifest_of(model)
    fingerprint = manifest["fingerprint"]
    parents = {"tokens": artifacts.read(tokens, stage="calibrate", model=fingerprint)}
    if before is not None:
        parents["before"] = artifacts.read(before, stage="inputs", model=fingerprint, block=block - 1)
    if weights is not None:
        parents["weights"] = artifacts.read(weights, model=fingerprint, block=block - 1)
    about = {"model": fingerprint, "block": block, "batch_size": batch_size, "device": device}
    about |= {"trail": trail, "calibration": parents["tokens"].digest}
    blocks, keys = open_blocks(manifest["folder"], settings["dtype"], device)

    def prune(parameter: str, values: Tensor) -> None:
        for name, linear in parents["weights"].provenance["linears"].items() if weights is not None else ():
            if linear["parameter"] == parameter:
                new = pruned_linear(parents["weights"], keys.weights, name)[0]
                part = rows_of_part(values, linear["part"], linear["parts"])
                part.copy_(new.T if linear["transposed"] != linear["turned"] else new)

    with blocks.loaded(block if before is None else block - 1, prune):
        passes = _passes(blocks, parents["tokens"], parents.get("before"), batch_size, f"inputs of block {block}")
        states = (entered if before is None else left for entered, left in passes)
        _write_inputs(
            inputs, states, parents["tokens"], artifacts.provenance("inputs", settings, code, parents, **about)
        )

    parents = {"tokens": parents["tokens"], "inputs": artifacts.read(inputs)}
    if dense is not None:
        parents["dense"] = artifacts.read(dense, stage="inputs", model=fingerprint, block=block)
    with blocks.loaded(block) as module, Products(module, set(settings["linears"]).__contains__) as seen:
        kept, tokens_of, shares = _observe(blocks, seen, parents, settings, batch_size, block)
        parameters = dict(module.named_parameters())
        described = {}
        for name, matrix in _every_part(seen).items():
            place, turned = keys.place(f"{blocks.prefix}.{block}.{matrix.parameter}", matrix.part, matrix.parts)
            described[name] = {
                **matrix._asdict(),
                "place": place,
                "transposed": matrix.transposed != turned,  # in the files
                "turned": turned,  # between the files and the model
                "gram": shares.get(name),
                "tokens": tokens_of.get(name, 0),
            }
            used = rows_of_part(parameters[matrix.parameter], matrix.part, matrix.parts)
            _check_place(described[name], keys, used.T if matrix.transposed else used, f"block {block}, {name}")
    fall_back(kept, described, blocks.width, settings["min_tokens"], f"block {block}")
    counted = math.prod(parents["tokens"].shape("tokens"))
    unseen = sorted(set(settings["linears"]) - {name_of(linear["parameter"]) for linear in described.values()})
    if unseen:
        log.info("block %d: %s had no part in any product: they stay dense", block, ", ".join(unseen))
    artifacts.write(
        grams,
        {name: tensor.float() for name, tensor in kept.items()},
        artifacts.provenance("gram", settings, code, parents, **about, linears=described, unseen=unseen),
    )
    dead = {name: int((kept[name].diagonal() == 0).sum()) for name in {each["gram"] for each in described.values()}}
    rows = [
        {
            "linear": name,
            "tokens": linear["tokens"],
            "dead_inputs": dead[linear["gram"]],
            **({"fallback": linear["fallback"]} if "fallback" in linear else {}),
        }
        for name, linear in described.items()
    ]
    write_metrics(metrics, "capture", labels, started, rows)
    return f"{counted:,} tokens, {counted / (time.monotonic() - started):,.0f} per second"


def _passes(
    blocks: Blocks,
    tokens: Artifact,
    hidden: Artifact | None,  # of what enters the loaded block; None: what the model itself makes of the tokens
    batch_size: int,
    what: str,  # for the progress
) -> Iterator[tuple[Flow, Flow]]:
    """What enters and leaves the loaded block, batch by batch."""
    samples, length = tokens.shape("tokens")
    for start in progress(range(0, samples, batch_size), what, batch_size * length, "tokens"):
        rows = slice(start, start + batch_size)
        entering = {name: hidden.read(name, rows) for name in hidden.names} if hidden else None
        yield blocks.forward(tokens.read("tokens", rows), entering)


def _write_inputs(path: Path, flows: Iterator[Flow], tokens: Artifact, provenance: dict[str, Any]) -> None:
    """Stream what enters a block into an artifact as it comes: hidden states and what else earlier blocks have left."""
    first = next(flows)
    samples = tokens.shape("tokens")[0]
    shapes = {name: (tensor.dtype, (samples, *tensor.shape[1:])) for name, tensor in first.items()}
    with artifacts.writing(path, shapes, provenance) as writer:
        for flow in chain([first], flows):
            for name, tensor in flow.items():
                if not finite(tensor):
                    raise GrampruneError(
                        f"block {provenance['block']}: the {name} states that enter it hold NaN or infinite values: "
                        f"they overflow in {tensor.dtype} or the block before is broken; try `dtype: float32`."
                    )
                writer.append(name, tensor)


def _observe(
    blocks: Blocks,
    seen: Products,  # of the loaded block
    parents: dict[str, Artifact],
    settings: dict[str, Any],
    batch_size: int,
    block: int,
) -> tuple[dict[str, Tensor], dict[str, int], dict[str, str]]:
    """What is kept of every distinct input X (tokens, in), tokens by linear, and the first linear that has its input.

    By that first one's name: `<linear>` (in, in) is XᵀX, `<linear>.sum` (in,) X summed over tokens, and, if `dense`
    is among the parents, `<linear>.cross` (in, in) XᵀY with the inputs Y for the same tokens in the dense model. Of
    experts there is none: a token may go to others there.
    """
    kept: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()
    shares: dict[str, str] = {}
    tokens, dtype = parents["tokens"], getattr(torch, settings["accumulate"])
    own, dense = (
        _passes(blocks, tokens, parents[name], batch_size, f"{what} of block {block}") if name in parents else None
        for name, what in (("inputs", "Gram matrices"), ("dense", "the dense model's inputs"))
    )
    for _ in own:
        shares = {**seen.shares(), **shares}
        batch = dict(seen.inputs)
        seen.clear()
        if dense:
            next(dense)  # fills it again
        for name, inputs in batch.items():
            counts[name] += sum(map(len, inputs))
            if shares[name] == name:
                others = seen.inputs[name] if dense and seen.matrices[name].part is None else [None] * len(inputs)
                for each, other in zip(inputs, others, strict=True):
                    _add(kept, name, each, other, dtype)
        batch.clear()
        seen.clear()
    for name, tensor in kept.items():
        if not finite(tensor):
            linear = name.removesuffix(".sum").removesuffix(".cross")
            raise GrampruneError(
                f"block {block}, {linear}: its inputs on {math.prod(tokens.shape('tokens')):,} calibration tokens hold "
                f"NaN or infinite values; try `dtype: float32`."
            )
    return kept, counts, shares


def _every_part(seen: Products) -> dict[str, Matrix]:
    """The matrices that were seen, and the experts beside them that no token went to."""
    found = dict(seen.matrices)
    for matrix in seen.matrices.values():
        for part in range(matrix.parts) if matrix.part is not None else ():
            found.setdefault(part_name(name_of(matrix.parameter), part), matrix._replace(part=part))
    return found


def _add(
    kept: dict[str, Tensor],  # added to
    name: str,
    inputs: Tensor,  # (..., in)
    dense: Tensor | None,  # (..., in)
    dtype: torch.dtype,  # in which products are summed
) -> None:
    """Add one batch to what is kept of an input."""
    columns = inputs.shape[-1]
    for key, others in [(name, None)] + ([] if dense is None else [(f"{name}.cross", dense)]):
        if key not in kept:
            kept[key] = torch.zeros(columns, columns, dtype=dtype, device=inputs.device)
        accumulate(kept[key], inputs, others)
    total = inputs.reshape(-1, columns).sum(dim=0, dtype=dtype).double()
    kept[f"{name}.sum"] = kept.get(f"{name}.sum", 0) + total


def _check_place(linear: dict[str, Any], keys: Keys, used: Tensor, where: str) -> None:
    """Raises GrampruneError if what the stages behind this one will read is not the weight that the block has used.

    used: (out, in) in the dtype of forward passes.
    """
    if not torch.equal(dense_linear(linear, keys.weights).to(used.device, used.dtype), used):
        raise GrampruneError(
            f"{where}: what {keys.weights.folder} holds at {linear['place'][0][0]} is not the weight that the model "
            "works with: transformers converts it in a way that is not supported; save it once with save_pretrained."
        )
