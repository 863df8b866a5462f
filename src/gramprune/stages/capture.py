"""Activations that enter a block, and one Gram matrix per distinct input of its linears.

Two passes over the calibration tokens, each with one block in memory: the block before, as the run left it, gives
the hidden states that enter this block; then this block, still dense, shows what enters its linears. Hidden states
stream from file to file, so memory does not grow with the number of samples or blocks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gramprune import artifacts, machine
from gramprune.artifacts import Artifact
from gramprune.blocks import Blocks, inputs_of, is_transposed, linears, open_blocks, shared_inputs
from gramprune.checkpoint import Weights
from gramprune.errors import GrampruneError
from gramprune.gram import accumulate
from gramprune.layout import selected
from gramprune.numerics import finite
from gramprune.pruned import pruned_linear, write_metrics
from gramprune.stages.fetch import manifest_of

log = logging.getLogger(__name__)


def capture(
    model: Path,  # manifest
    tokens: Path,  # calibration tokens
    before: Path | None,  # hidden states that entered the block before; None for block 0
    weights: Path | None,  # what a run made of the block before; None: it stays dense
    inputs: Path,  # output: `hidden` (samples, length, width) in the dtype that the model passes on
    grams: Path,  # output: one (in, in) matrix per distinct input, named after the first linear that has it
    metrics: Path,  # output
    block: int,
    labels: dict[str, str],  # what the metrics are found by
    settings: dict[str, Any],  # dtype, accumulate, exclude
    code: str,
    device: str,
    batch_size: int,  # sequences
) -> None:
    """Write the hidden states that enter `block`, and the Gram matrices of its linears.

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
    blocks, checkpoint = open_blocks(manifest["folder"], settings["dtype"], device)

    def pruned(name: str) -> Tensor | None:
        if weights is None or name not in parents["weights"].provenance["linears"]:
            return None
        return pruned_linear(parents["weights"], checkpoint, name)[0]

    with blocks.loaded(block if before is None else block - 1, pruned):
        passes = _passes(blocks, parents["tokens"], parents.get("before"), batch_size, f"inputs of block {block}")
        states = (entered if before is None else left for entered, left in passes)
        _write_inputs(
            inputs, states, parents["tokens"], artifacts.provenance("inputs", settings, code, parents, **about)
        )

    parents = {"tokens": parents["tokens"], "inputs": artifacts.read(inputs)}
    with blocks.loaded(block) as module:
        found = linears(module)
        watched = {name: found[name] for name in selected(found, settings["exclude"])}
        matrices, shares = _gram_matrices(blocks, watched, parents, settings, batch_size, block)
        described = {
            name: {
                "gram": shares[name],
                "key": _key(checkpoint, f"{blocks.prefix}.{block}.{name}.weight"),
                "transposed": is_transposed(linear),
                "shape": list(linear.weight.T.shape if is_transposed(linear) else linear.weight.shape),
            }
            for name, linear in watched.items()
            if name in shares
        }
    counted = parents["tokens"].shape("tokens")[0] * parents["tokens"].shape("tokens")[1]
    unseen = sorted(watched.keys() - shares.keys())
    if unseen:
        log.info("block %d: %s read without being called as modules: they stay dense", block, ", ".join(unseen))
    artifacts.write(
        grams,
        {name: matrix.float() for name, matrix in matrices.items()},
        artifacts.provenance(
            "gram", settings, code, parents, **about, tokens=counted, linears=described, unseen=unseen
        ),
    )
    dead = {name: int((matrix.diagonal() == 0).sum()) for name, matrix in matrices.items()}
    rows = [{"linear": name, "tokens": counted, "dead_inputs": dead[first]} for name, first in shares.items()]
    write_metrics(metrics, "capture", labels, started, rows)


def _passes(
    blocks: Blocks,
    tokens: Artifact,
    hidden: Artifact | None,  # what enters the loaded block; None: what the model itself makes of the tokens
    batch_size: int,
    what: str,  # for the progress
) -> Iterator[tuple[Tensor, Tensor]]:
    """What enters and leaves the loaded block, batch by batch."""
    samples = tokens.shape("tokens")[0]
    started = last = time.monotonic()
    for start in range(0, samples, batch_size):
        rows = slice(start, start + batch_size)
        yield blocks.forward(tokens.read("tokens", rows), hidden and hidden.read("hidden", rows))
        if time.monotonic() - last > 10:
            last = time.monotonic()
            done = min(start + batch_size, samples)
            log.info("%s: %d of %d, %.0f s left", what, done, samples, (last - started) * (samples / done - 1))


def _write_inputs(path: Path, states: Iterator[Tensor], tokens: Artifact, provenance: dict[str, Any]) -> None:
    """Stream hidden states into an artifact as they come."""
    first = next(states)
    shape = (*tokens.shape("tokens"), first.shape[-1])
    with artifacts.writing(path, {"hidden": (first.dtype, shape)}, provenance) as writer:
        for state in chain([first], states):
            if not finite(state):
                raise GrampruneError(
                    f"block {provenance['block']}: the hidden states that enter it hold NaN or infinite values: "
                    f"they overflow in {state.dtype} or the block before is broken; try `dtype: float32`."
                )
            writer.append("hidden", state)


def _gram_matrices(
    blocks: Blocks,
    watched: dict[str, torch.nn.Module],
    parents: dict[str, Artifact],
    settings: dict[str, Any],
    batch_size: int,
    block: int,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Gram matrices by the first linear that has the input, and from every linear to that first one."""
    matrices: dict[str, Tensor] = {}
    shares: dict[str, str] = {}
    passes = _passes(blocks, parents["tokens"], parents["inputs"], batch_size, f"Gram matrices of block {block}")
    with inputs_of(watched) as seen:
        for _ in passes:
            shares = shares or shared_inputs(seen)
            for name in dict.fromkeys(shares.values()):
                if name not in matrices:
                    columns, dtype = seen[name].shape[-1], getattr(torch, settings["accumulate"])
                    matrices[name] = torch.zeros(columns, columns, dtype=dtype, device=seen[name].device)
                accumulate(matrices[name], seen[name])
            seen.clear()
    tokens = parents["tokens"].shape("tokens")
    for name, matrix in matrices.items():
        if not finite(matrix):
            raise GrampruneError(
                f"block {block}, {name}: its inputs on {tokens[0] * tokens[1]:,} calibration tokens hold NaN or "
                f"infinite values; try `dtype: float32`."
            )
    return matrices, shares


def _key(checkpoint: Weights, parameter: str) -> str:
    """The checkpoint's key of a parameter that `open_blocks` has found there."""
    key = checkpoint.key_of(parameter)
    assert key is not None
    return key
