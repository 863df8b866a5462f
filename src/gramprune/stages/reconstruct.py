"""Reconstruction of a pruned block: see gramprune.pruning.reconstruct for what is done, here is with what.

The block's inputs are those that the run's own blocks before it give. What it is to give is seen first, block still
dense, and put aside in a file: so memory holds one block, its gradients and the optimizer's state, and the hidden
states of a few sequences.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gramprune import machine
from gramprune.errors import GrampruneError
from gramprune.model import places
from gramprune.model.blocks import HIDDEN, Blocks, open_blocks
from gramprune.model.keys import Keys
from gramprune.model.manifest import manifest_of
from gramprune.model.products import rows_of_part
from gramprune.progress import Progress, progress
from gramprune.pruning.reconstruct import Outputs, spread, train_kept
from gramprune.stages.pruned import (
    block_shapes,
    fitting,
    owned_by,
    pruned_linear,
    put_pruned,
    read_mask,
    turned,
    write_metrics,
)
from gramprune.storage import artifacts, files
from gramprune.storage.artifacts import Artifact

log = logging.getLogger(__name__)


def reconstruct_block(
    model: Path,  # manifest
    tokens: Path,  # calibration tokens
    inputs: Path,  # hidden states that enter this block of the run
    dense: Path | None,  # those that enter it in the dense model; None: the block is to be like itself on `inputs`
    weights: Path,  # the run's weights of the block, or its mask alone
    output: Path,  # like weights, and `<parameter>.values` of every other parameter that was trained
    metrics: Path,  # output
    block: int,
    labels: dict[str, str],  # what the metrics are found by
    settings: dict[str, Any],  # method, options
    code: str,
    device: str,
    batch_size: int | str,  # sequences per forward pass, or "auto"
    owners: Iterable[Path] = (),  # what the run made of earlier blocks that prune for this one too
) -> str:
    """Train the kept weights of a block; return for people what that has won.

    What other blocks share with it stays as it is: they want something else of it.
    Raises GrampruneError for artifacts of another model or block, and weights that do not fit the stored dtype.
    """
    started, device = time.monotonic(), machine.device(device)
    manifest = manifest_of(model)
    about = {"model": manifest["fingerprint"], "block": block}
    options = dict(settings["options"])
    region, trains = options.pop("region"), options.pop("train")
    parents = {
        "tokens": artifacts.read(tokens, stage="calibrate", model=about["model"]),
        "inputs": artifacts.read(inputs, stage="inputs", **about),
        "weights": artifacts.read(weights, **about),
    }
    others = owned_by(owners, about["model"])
    parents |= others
    if dense is not None:
        parents["dense"] = artifacts.read(dense, stage="inputs", **about)
    blocks, keys = open_blocks(manifest["folder"], "float32", device)
    prefix, where = f"{blocks.prefix}.{block}", f"block {block}"
    samples, length = parents["tokens"].shape("tokens")
    batch_size = machine.batch(batch_size, length, device)
    # Weights stay in float32; on a GPU products may be computed in the model's own bfloat16.
    half = device != "cpu" and parents["inputs"].dtype(HIDDEN) == torch.bfloat16
    cast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half)
    aimed = parents.get("dense", parents["inputs"])
    with files.scratch_folder(Path(output).with_suffix(".aims")) as scratch, cast:
        path = scratch / "aims.safetensors"
        with blocks.loaded(block) as module, regions(module, region, parents["weights"]) as given, torch.no_grad():
            look = partial(_outputs, blocks, given, parents["tokens"], aimed)
            _write_aims(path, look, samples, batch_size, f"dense {where}")
        aims = artifacts.read(path)
        put = partial(put_pruned, [parents["weights"], *others.values()], keys.weights, block)
        with blocks.loaded(block, put) as module, regions(module, region, parents["weights"]) as given:
            common = blocks.shared(block)
            trained = _trained(module, parents["weights"], keys, prefix, trains, common, where)
            blocks.model.requires_grad_(False)
            count = Progress(
                f"reconstruction of {where}",
                options["epochs"] * (samples - len(spread(samples, options["held_out"]))),
                unit="sequences",
            )
            result = train_kept(
                partial(_outputs, blocks, given, parents["tokens"], parents["inputs"]),
                lambda numbers: [_rows(aims, name, numbers).to(device) for name in aims.names],
                [parameter.requires_grad_() for parameter, _ in trained.values()],
                [mask for _, mask in trained.values()],
                samples,
                **options,
                at_once=batch_size,
                where=f"reconstruction of {where}",
                done=count.step,
            )
            made = {"threads": torch.get_num_threads(), "device": device, "batch_size": batch_size}
            made = artifacts.provenance("reconstruct", settings, code, parents, **about, **made)
            values = {name: parameter.detach() for name, (parameter, _) in trained.items()}
            rows = _write(output, values, parents["weights"], keys, prefix, made, where)
    first, best = result["losses"][0], result["losses"][result["best"]]
    write_metrics(metrics, "reconstruct", labels, started, rows, curve=result["losses"], best=result["best"])
    return f"loss {first:.4g} to {best:.4g} in epoch {result['best']} of {options['epochs']}"


def _write_aims(path: Path, look: Outputs, samples: int, batch_size: int, what: str) -> None:
    """What the regions give for all sequences, as an artifact whose tensors are the regions, named in their order."""
    batches = [range(start, min(start + batch_size, samples)) for start in range(0, samples, batch_size)]
    with ExitStack() as stack:
        writer = None
        for numbers in progress(batches, what, batch_size, "sequences"):
            given = {f"{place:03d}": tensor for place, tensor in enumerate(look(numbers))}
            if writer is None:
                shapes = {name: (tensor.dtype, (samples, *tensor.shape[1:])) for name, tensor in given.items()}
                writer = stack.enter_context(artifacts.writing(path, shapes, {}))
            for name, tensor in given.items():
                writer.append(name, tensor)


@contextmanager
def regions(block: nn.Module, region: str, weights: Artifact) -> Iterator[dict[str, Tensor]]:
    """A mapping that holds what each of the block's halves has given last; nothing where the block is one region.

    A half is what stands right below the block and holds pruned matrices, such as attention and the MLP. Gradients
    stay inside: what enters one is no part of what is learnt.
    """
    given: dict[str, Tensor] = {}
    owners = {linear["parameter"].split(".")[0] for linear in weights.provenance["linears"].values()}

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        cut = lambda value: value.detach() if isinstance(value, Tensor) else value  # noqa: E731
        return tuple(map(cut, args)), {name: cut(value) for name, value in kwargs.items()}

    def leave(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        given[name] = output[0] if isinstance(output, (tuple, list)) else output

    hooks = []
    for name, child in block.named_children() if region == "halves" else ():
        if name in owners:
            hooks.append(child.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.append(child.register_forward_hook(partial(leave, name)))
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def _outputs(
    blocks: Blocks, given: dict[str, Tensor], tokens: Artifact, inputs: Artifact, numbers: Sequence[int]
) -> list[Tensor]:
    """What the regions of the loaded block give for some sequences."""
    entering = {name: _rows(inputs, name, numbers) for name in inputs.names}
    _, left = blocks.differentiable(_rows(tokens, "tokens", numbers), entering)
    found = [*given.values()] or [left[HIDDEN]]
    given.clear()
    return found


def _rows(artifact: Artifact, name: str, numbers: Sequence[int]) -> Tensor:
    """Some rows of a tensor, fractions in float32."""
    rows = torch.cat([artifact.read(name, slice(number, number + 1)) for number in numbers])
    return rows.float() if rows.is_floating_point() else rows


def _trained(
    module: nn.Module,
    weights: Artifact,
    keys: Keys,
    prefix: str,  # of the block's parameters
    trains: list[str],
    common: Container[str],  # parameters that stand in other blocks too
    where: str,
) -> dict[str, tuple[nn.Parameter, Tensor | None]]:
    """The parameters that are trained, by their names in the block, with the mask of those that are pruned."""
    parameters = dict(module.named_parameters())
    masks: dict[str, Tensor] = {}
    for name, linear in weights.provenance["linears"].items() if "weights" in trains else ():
        if "shared" in linear:
            continue
        parameter = parameters[linear["parameter"]]
        # Matrices beside it in the same parameter that stay dense are not trained.
        mask = masks.setdefault(linear["parameter"], torch.zeros_like(parameter, dtype=torch.bool))
        rows_of_part(mask, linear["part"], linear["parts"]).copy_(turned(linear, read_mask(weights, name)))
    found: dict[str, tuple[nn.Parameter, Tensor | None]] = {name: (parameters[name], masks[name]) for name in masks}
    for name, parameter in parameters.items():
        kind = "biases" if name.endswith("bias") else "norms" if name.endswith("weight") else None
        if parameter.ndim == 1 and kind in trains and name not in common:
            try:
                keys.place(f"{prefix}.{name}")
            except GrampruneError as error:
                log.info("%s: %s is not trained: %s", where, name, error)
            else:
                found[name] = parameter, None
    return found


def _write(
    output: Path,
    values: dict[str, Tensor],  # what was trained, by parameter
    weights: Artifact,
    keys: Keys,
    prefix: str,
    provenance: dict[str, Any],
    where: str,
) -> list[dict[str, Any]]:
    """Write the block in the stored dtypes; return for every pruned matrix how far it has moved."""
    linears = weights.provenance["linears"]
    others = {name: keys.place(f"{prefix}.{name}")[0] for name, tensor in values.items() if tensor.ndim == 1}
    others = weights.provenance.get("parameters", {}) | others
    provenance |= {"linears": linears, "dense": weights.provenance["dense"], "parameters": others}
    rows = []
    with artifacts.writing(output, block_shapes(linears, others, keys.weights), provenance) as writer:
        for name, linear in linears.items():
            old, mask = pruned_linear(weights, keys.weights, name)
            new = old
            if linear["parameter"] in values:
                part = rows_of_part(values[linear["parameter"]], linear["part"], linear["parts"])
                new = turned(linear, part).cpu().where(mask, 0)
            writer.append(f"{name}.weight", fitting(new, old.dtype, f"{where}, {name}"))
            writer.append(f"{name}.mask", artifacts.pack_mask(mask))
            change, size = (new.double() - old.double()).norm(), old.double().norm()
            rows.append({"linear": name, "moved": float(change / size) if size else 0.0})
        for name, place in others.items():
            new = values[name] if name in values else weights.read(f"{name}.values")
            writer.append(f"{name}.values", fitting(new, places.dtype(place, keys.weights), f"{where}, {name}"))
    return rows
