"""DLP, dynamic layerwise pruning (arXiv 2505.23807, and its code): a sparsity per block, by its median Wanda score.

With S_b the median of |W_ij| · ‖X_j‖ over all weights of block b, its importance is 1 − S_b / Σ S. Densities are the
importances, brought linearly to a range of 2α. Where the authors give blocks the wanted mean, whatever their sizes,
here all weights together have it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gramprune.pruning.rooms import Room, balanced, wanted

if TYPE_CHECKING:
    from gramprune.pruning.allocation import Linear


def look(linears: Iterable[Linear]) -> tuple[int, float]:
    """How many linears a block has, and its median score, the lower one of two."""
    scores = [(linear.weight.abs() * linear.gram.norms).flatten() for linear in linears]
    return len(scores), float(torch.cat(scores).median())


def share(
    kept: list[tuple[int, float]],
    rooms: list[Room],
    alpha: float,
) -> Tensor:
    """(linears,) float64: the wanted fraction of each, more where its block's median is high. Alike are left alike."""
    medians = torch.tensor([median for _, median in kept], dtype=torch.float64)
    spread = medians.max() - medians.min()
    # The importances are linear in the medians, so that their sum and the sign are all that scaling to 2α takes away.
    tilts = (medians - medians.min()) * (2 * alpha / spread) if spread > 0 else torch.zeros_like(medians)
    return balanced(wanted(rooms) + tilts.repeat_interleave(torch.tensor([count for count, _ in kept])), rooms)
