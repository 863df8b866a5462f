"""Activations that enter a block, and one Gram matrix per distinct input of its linears.

Two passes over the calibration tokens, each with one block in memory: the block before, as the run left it, gives
the hidden states that enter this block; then this block, still dense, shows what enters its linears. Hidden states
stream from file to file, so memory does not grow with the number of samples or blocks. For runs that aim at the dense
model's outputs the second pass also sees what enters the same block of the dense model. What an earlier block prunes
for this one too is pruned where the block after asks for its outputs, and dense while its linears are looked at.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gramprune import machine
from gramprune.errors import GrampruneError
from gramprune.model.blocks import Flow, open_blocks
from gramprune.model.keys import Keys
from gramprune.model.manifest import manifest_of
from gramprune.model.products import Matrix, Products, name_of, part_name, rows_of_part
from gramprune.model.routing import all_experts
from gramprune.pruning.numerics import finite
from gramprune.stages.experts import fall_back
from gramprune.stages.observe import Observed, observe, passes
from gramprune.stages.pruned import dense_linear, owned_by, put_pruned, write_metrics
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
    grams: Path,  # output: Gram matrices, and what else `observe` keeps of the linears' inputs
    metrics: Path,  # output
    trail: str,
    block: int,
    labels: dict[str, str],  # what the metrics are found by
    settings: dict[str, Any],  # dtype, accumulate, experts, min_tokens, linears, shared
    code: str,
    device: str,
    batch_size: int | str,  # sequences, or "auto"
    room: int,  # bytes of Gram matrices that are summed at a time
    owners: Iterable[Path] = (),  # what the run made of earlier blocks that prune for the one before
) -> str:
    """Write the hidden states that enter `block`, and the Gram matrices of its linears; return the speed for people.

    settings["shared"]: of linears that several blocks work with, the numbers of all of them; nothing if there are none.
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
    parents |= owned_by(owners, fingerprint)
    pruned = [artifact for name, artifact in parents.items() if name.startswith("weights")]
    # What is automatic is chosen for the first block, on whatever machine that was, and stays so for those behind it.
    chosen = parents["before"].provenance["dtype"] if before is not None else settings["dtype"]
    blocks, keys = open_blocks(manifest["folder"], chosen, device)
    batch_size = machine.batch(batch_size, parents["tokens"].shape("tokens")[1], device)
    about = {"model": fingerprint, "block": block, "batch_size": batch_size, "device": device}
    about |= {"dtype": str(blocks.dtype).removeprefix("torch."), "trail": trail}
    about |= {"calibration": parents["tokens"].digest}
    prune = partial(put_pruned, pruned, keys.weights, block - 1)
    with blocks.loaded(block if before is None else block - 1, prune):
        pairs = passes(blocks, parents["tokens"], parents.get("before"), batch_size, f"inputs of block {block}")
        states = (entered if before is None else left for entered, left in pairs)
        _write_inputs(
            inputs, states, parents["tokens"], artifacts.provenance("inputs", settings, code, parents, **about)
        )

    parents = {"tokens": parents["tokens"], "inputs": artifacts.read(inputs)}
    if dense is not None:
        parents["dense"] = artifacts.read(dense, stage="inputs", model=fingerprint, block=block)
    wanted, where = set(settings["linears"]), f"block {block}"
    with blocks.loaded(block) as module, Products(module, wanted.__contains__) as seen, ExitStack() as stack:
        everywhere = settings["experts"] == "all"
        if everywhere:
            next(passes(blocks, parents["tokens"], parents["inputs"], 1, where))
            stack.enter_context(all_experts(module, max((m.parts for m in seen.matrices.values()), default=1)))
            seen.clear()
        dtype = getattr(torch, settings["accumulate"])
        look = partial(observe, blocks, seen, wanted, parents, batch_size, dtype, room, where, everywhere)
        first = look()
        described = _describe(module, seen, first, keys, f"{blocks.prefix}.{block}", where)
        for name, all_blocks in settings.get("shared", {}).items():
            described[name]["shared"] = all_blocks
        stand_ins = fall_back(described, blocks.width, settings["min_tokens"], where)
        unseen = sorted(wanted - {name_of(linear["parameter"]) for linear in described.values()})
        if unseen:
            log.info("%s: %s had no part in any product: they stay dense", where, ", ".join(unseen))
        made = artifacts.provenance("gram", settings, code, parents, **about, linears=described, unseen=unseen)
        dead = _write_grams(grams, made, first, look, stand_ins)
    counted = math.prod(parents["tokens"].shape("tokens"))
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


def _describe(
    module: nn.Module,  # the loaded block
    seen: Products,
    first: Observed,
    keys: Keys,
    prefix: str,  # of the block's parameters
    where: str,
) -> dict[str, dict[str, Any]]:
    """What the stages behind this one are told of every linear, and of the experts that no token went to."""
    every = dict(seen.matrices)
    for matrix in seen.matrices.values():
        for part in range(matrix.parts) if matrix.part is not None else ():
            every.setdefault(part_name(name_of(matrix.parameter), part), matrix._replace(part=part))
    parameters, described = dict(module.named_parameters()), {}
    for name, matrix in every.items():
        place, turned = keys.place(f"{prefix}.{matrix.parameter}", matrix.part, matrix.parts)
        described[name] = {
            **matrix._asdict(),
            "place": place,
            "transposed": matrix.transposed != turned,  # in the files
            "turned": turned,  # between the files and the model
            "gram": first.shares.get(name),
            "tokens": first.tokens.get(name, 0),
            **_bias(module, matrix, keys, prefix),
        }
        used = rows_of_part(parameters[matrix.parameter], matrix.part, matrix.parts)
        _check_place(described[name], keys, used.T if matrix.transposed else used, f"{where}, {name}")
    return described


def _bias(module: nn.Module, matrix: Matrix, keys: Keys, prefix: str) -> dict[str, Any]:
    """Name and place of the bias that a linear adds to its outputs, if it has one of its own in the files."""
    owner, _, leaf = matrix.parameter.rpartition(".")
    layer = module.get_submodule(owner)
    bias = getattr(layer, "bias", None)
    if leaf != "weight" or not isinstance(layer, nn.Linear | Conv1D) or bias is None or matrix.part is not None:
        return {}
    try:
        return {"bias": f"{owner}.bias", "bias_place": keys.place(f"{prefix}.{owner}.bias")[0]}
    except GrampruneError:
        return {}


def _write_grams(
    path: Path,
    provenance: dict[str, Any],
    first: Observed,  # emptied
    look: Callable[..., Observed],  # another pass, for those that are waiting
    stand_ins: dict[str, list[str]],  # as `fall_back` gives them
) -> dict[str, int]:
    """Write the Gram matrices that are used, group by group; return the dead inputs of each.

    A stand-in is the sum of what its experts have, or the identity where it has none.
    """
    linears = provenance["linears"]
    columns = {linear["gram"]: linear["shape"][1] for linear in linears.values()}
    shapes: dict[str, tuple[int, ...]] = {name: (n, n) for name, n in columns.items()}
    shapes |= {f"{name}.sum": (n,) for name, n in columns.items()}
    if "dense" in provenance["inputs"]:
        experts = {linear["gram"] for linear in linears.values() if linear["part"] is not None}
        shapes |= {f"{name}.cross": (n, n) for name, n in columns.items() if name not in experts}
    sums = {base: torch.eye(columns[base]) for base, experts in stand_ins.items() if not experts}
    sums |= {f"{base}.sum": torch.zeros(columns[base]) for base in sums}
    summed = {expert: base for base, experts in stand_ins.items() for expert in experts}
    dead = {}
    sizes = {name: (torch.float32, shape) for name, shape in shapes.items()}
    with artifacts.writing(path, sizes, provenance) as writer:

        def write(kept: dict[str, Tensor]) -> None:
            for name, tensor in kept.items():
                if name in shapes:
                    writer.append(name, tensor.float())
                if name in columns:
                    dead[name] = int((tensor.diagonal() == 0).sum())

        found = first
        while True:
            write(found.kept)
            for expert, base in summed.items():
                for end in ("", ".sum") if expert in found.kept else ():
                    sums[base + end] = sums.get(base + end, 0) + found.kept[expert + end]
            found.kept.clear()
            only = [name for name in found.waiting if name in columns or name in summed]
            if not only:
                break
            found = look(only=only)
        write(sums)
    return dead


def _check_place(linear: dict[str, Any], keys: Keys, used: Tensor, where: str) -> None:
    """Raises GrampruneError if what the stages behind this one will read is not the weight that the block has used.

    used: (out, in) in the dtype of forward passes.
    """
    if not torch.equal(dense_linear(linear, keys.weights).to(used.device, used.dtype), used):
        raise GrampruneError(
            f"{where}: what {keys.weights.folder} holds at {linear['place'][0][0]} is not the weight that the model "
            "works with: transformers converts it in a way that is not supported; save it once with save_pretrained."
        )
