"""DLP, dynamic layerwise pruning (arXiv 2505.23807): fewer zeros for blocks whose Wanda scores have a low median.

With S_b the median of |W_ij| · ‖X_j‖ over all weights of block b, its importance is 1 − S_b / Σ S. Densities are the
importances, brought linearly to a range of 2α. Where the authors have the wanted mean over blocks, whatever their
sizes, all weights together have it here.
When to use: from 60 % on, for the price of a look at every weight; see docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gramprune.pruning.gram import as_gram

if TYPE_CHECKING:
    from gramprune.pruning.allocation import Linear


def look(linears: Iterable[Linear]) -> float:
    """The median score of a block, the lower one of two."""
    scores = [(linear.weight.abs() * as_gram(linear.gram).norms).flatten() for linear in linears]
    return float(torch.cat(scores).median())


def tilts(
    kept: list[float],  # by block
    alpha: float,
) -> Tensor:
    """(blocks,) float64: how much larger than wanted each block's fractions are, but for what is the same for all."""
    medians = torch.tensor(kept, dtype=torch.float64)
    above = medians - medians.min()
    # 1 − S_b / Σ S is linear in S_b: the range of 2α undoes the sum, and what is left of the sign is that of a density.
    return above * (2 * alpha / above.max()) if above.max() > 0 else above
