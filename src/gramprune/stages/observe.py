"""Gram matrices of what enters a block's linears, as many at a time as there is room for.

A block with experts may have more of them than fit into memory: 57 GB in one block of DeepSeek-V3. The calibration
tokens then pass through the block several times, and each time as many Gram matrices are summed as fit. What each one
is does not depend on how many they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.model.blocks import Blocks, Flow
from gramprune.model.products import Products, name_of
from gramprune.progress import progress
from gramprune.pruning.gram import accumulate
from gramprune.pruning.numerics import finite
from gramprune.storage.artifacts import Artifact


class Observed(NamedTuple):
    """What was seen in one pass over the calibration tokens."""

    kept: dict[str, Tensor]
    """Of every distinct input X (tokens, in), by the first linear that has it: `<linear>` (in, in) is XᵀX,
    `<linear>.sum` (in,) X summed over tokens, and with a dense model's inputs Y for the same tokens, `<linear>.cross`
    (in, in) is XᵀY. Of experts there is no such one: a token may go to others there."""
    tokens: Counter[str]  # by linear
    shares: dict[str, str]  # from every linear to the first one that has the same input
    waiting: list[str]  # linears whose Gram matrices had no room: a further pass is needed


def passes(
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


def observe(
    blocks: Blocks,
    seen: Products,  # of the loaded block
    wanted: set[str],  # the matrices that it notes, by the name without a part
    parents: dict[str, Artifact],  # tokens, inputs; dense: what enters the block of the dense model
    batch_size: int,
    dtype: torch.dtype,  # in which products are summed
    room: float,  # bytes of Gram matrices; one is always taken
    where: str,
    equal: bool = False,  # whether experts are looked at for equal inputs: all tokens go to all of them
    only: Iterable[str] | None = None,  # what waits since the pass before; None: this is the first one
) -> Observed:
    """One pass over the calibration tokens. Raises GrampruneError for inputs that are not finite.

    Where each matrix works once on every token, a batch ends at the last one's inputs: its product is not needed.
    """
    kept: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()
    shares: dict[str, str] = {}
    waiting = dict.fromkeys(only or ())
    crossed = "dense" in parents and (only is None or any(seen.matrices[name].part is None for name in only))
    own = passes(blocks, parents["tokens"], parents["inputs"], batch_size, f"Gram matrices of {where}")
    dense = None
    if crossed:
        dense = passes(blocks, parents["tokens"], parents["dense"], batch_size, f"the dense model's inputs of {where}")
    for _ in own:
        shares = {**seen.shares(equal=equal), **shares}
        batch = dict(seen.inputs)
        if not counts and wanted == {name_of(seen.matrices[name].parameter) for name in batch}:
            once = all(len(seen.inputs[name]) == 1 and seen.matrices[name].part is None for name in batch)
            seen.enough = set(batch) if once else set()
        seen.clear()
        if dense:
            next(dense)  # fills it again
        for name, inputs in batch.items():
            counts[name] += sum(map(len, inputs))
            if shares[name] != name or not (only is None or name in waiting or name in kept):
                continue
            others: list[Tensor | None] | None = None
            if dense and seen.matrices[name].part is None:
                others = [*seen.inputs[name]]
            if name not in kept:
                size = dtype.itemsize * (1 + (others is not None)) * inputs[0].shape[-1] ** 2
                if kept and size > room:  # neither later: room only becomes less
                    waiting[name] = None
                    continue
                waiting.pop(name, None)
                room -= size
            for each, other in zip(inputs, others or [None] * len(inputs), strict=True):
                _add(kept, name, each, other, dtype)
        batch.clear()
        seen.clear()
    for name, tensor in kept.items():
        if not finite(tensor):
            linear = name.removesuffix(".sum").removesuffix(".cross")
            raise GrampruneError(
                f"{where}, {linear}: its inputs on {counts[linear]:,} calibration tokens hold NaN or infinite values; "
                "try `dtype: float32`."
            )
    return Observed(kept, counts, shares, list(waiting))


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
