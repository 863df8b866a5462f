"""What is measured of logits, without having more of them in memory than a few positions'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Logits = Callable[[Sequence[Tensor], Sequence[Tensor]], Iterator[Iterator[Tensor]]]
"""What measures see of a model, see `model.logits`: (batches, asked) -> of every batch its logits, piece by piece."""


def measured(
    logits: Logits,
    batches: Sequence[Tensor],  # tokens, (sequences, length) int64 each
    asked: Sequence[Tensor],  # of every batch the positions that are looked at, (wanted,) int64, through all sequences
    targets: Sequence[Tensor],  # the tokens behind them, (wanted,) int64
    measure: Callable[[Tensor, Tensor], Tensor],  # logits (some, vocabulary), targets (some,) -> (some, …)
) -> Iterator[Tensor]:
    """Of every batch, the measure of what was asked: (wanted, …)."""
    for wanted, pieces in zip(targets, logits(batches, asked), strict=True):
        found, start = [], 0
        for piece in pieces:
            found.append(measure(piece, wanted[start : start + len(piece)].to(piece.device)))
            start += len(piece)
        yield torch.cat(found)
