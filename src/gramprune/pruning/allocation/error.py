"""Equal marginal errors (this project): the next zero costs as much in every block, by what the blocks behind lose.

The error of pruning a weight when all others of its row make up for it is w_p² / [H⁻¹]_pp (Optimal Brain Surgeon).
Relative to ‖XWᵀ‖², what the linear gives, it can be summed over linears; and it counts once for the block that makes it
and once for every block behind, which sees it in its inputs. The sum over all zeros is least, for a given number of
them, where one threshold holds in all blocks: those in which it is reached early keep more weights.
When to use: as dlp, which sees one number of each block's scores; this sees their whole distribution. Linears of a
block move together: with thresholds of their own, which were tried, most models of ours ended worse than uniform.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gramprune.pruning.gram import as_gram, layer_error

if TYPE_CHECKING:
    from gramprune.pruning.allocation import Linear

DAMPING = 0.01  # as in the masks of mrp, which have the same scores
STEPS = 1000  # in which a block's fraction goes from the lowest to the highest


def look(linears: Iterable[Linear]) -> list[tuple[Tensor, int, float]]:
    """Of every linear of a block: (in,) float64, relative errors of one more zero when so many of all inputs are zero
    already; its number of weights; and its wanted fraction."""
    return [(_errors(linear), linear.weight.numel(), linear.pattern.sparsity) for linear in linears]


def _errors(linear: Linear) -> Tensor:
    """(in,) float64, ascending: means over rows or, of a matrix, over as many weights that follow each other."""
    weight, gram = linear.weight, as_gram(linear.gram)
    inverse, _ = gram.inverse(DAMPING, even=True)
    scores = (weight * gram.norms).square_().div_(inverse.diagonal())
    ranked = linear.pattern.rows_of_choice(scores).sort(dim=1).values.double()
    by_row = ranked if linear.pattern.granularity == "row" else ranked.view(-1, len(weight)).T
    output = layer_error(weight, torch.zeros_like(weight), gram)
    return by_row.mean(dim=0).div_(output or 1.0).cpu()


def tilts(
    kept: list[list[tuple[Tensor, int, float]]],  # by block
    alpha: float,
) -> Tensor:
    """(blocks,) float64: how far each block is from its wanted fractions, at most α, for the least sum of errors."""
    moves = torch.linspace(-alpha, alpha, STEPS + 1, dtype=torch.float64)[:-1]  # before each step
    sizes = torch.tensor([sum(size for _, size, _ in block) for block in kept], dtype=torch.float64)
    costs = []
    for place, block in enumerate(kept):
        each = [size * errors[_index(wanted + moves, len(errors))] for errors, size, wanted in block]
        costs.append(sum(each) / sizes[place] * (len(kept) - place))

    def moved(threshold: Tensor, right: bool) -> Tensor:
        """Where the next step costs more than the threshold; or as much, unless `right`."""
        counts = torch.stack([torch.searchsorted(cost, threshold, right=right) for cost in costs])
        return alpha * (2 * counts.double() / STEPS - 1)

    thresholds = torch.cat(costs).unique()
    first, last = 0, len(thresholds) - 1
    while first < last:
        middle = (first + last) // 2
        enough = moved(thresholds[middle], right=True) @ sizes >= 0
        first, last = (first, middle) if enough else (middle + 1, last)
    fewest, most = (moved(thresholds[first], right) for right in (False, True))
    return fewest + (most - fewest) * (-(fewest @ sizes) / ((most - fewest) @ sizes))


def _index(fractions: Tensor, columns: int) -> Tensor:
    """Which zero of a row is the next at these fractions, from 0."""
    return (fractions * columns).long().clamp_(0, columns - 1)
