"""Equal marginal errors: the next weight to be pruned costs as much in every linear, relative to what it gives.

The error of pruning one weight alone is Wanda's score squared, W_ij² G_jj; relative to the linear's output ‖XWᵀ‖² it
can be compared between linears. Their sum over all that is pruned is least, at a given number of zeros, if one
threshold holds for all linears: where it is reached early, weights are needed, and fewer are pruned.
When to use: like DLP, which sees only medians and whole blocks. No fraction is farther than α from the wanted one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gramprune.pruning.gram import layer_error
from gramprune.pruning.rooms import Room, bounds, mean, wanted

if TYPE_CHECKING:
    from gramprune.pruning.allocation import Linear


SCORE = "wanda"
NORM = "energy"


def look(linears: Iterable[Linear]) -> list[Tensor]:
    """(in,) float64 of every linear of a block: the relative error per weight when its zeros grow by one in every row,
    or by as many in the matrix, in ascending order."""
    return [_curve(linear) for linear in linears]


def _curve(linear: Linear) -> Tensor:
    weight, gram = linear.weight, linear.gram
    output = layer_error(weight, weight.new_zeros(()).expand(weight.shape), gram)
    if SCORE == "obs":
        scores = (weight * gram.norms).square() / gram.inverse(0.01, even=True)[0].diagonal()
    else:
        scores = (weight * gram.norms).square()
    if NORM == "diag":
        output = float(scores.double().sum())
    rows = linear.pattern.rows_of_choice(scores.double()).sort(dim=1).values
    curve = rows.mean(dim=0) if len(rows) == len(weight) else rows.view(-1, len(weight)).mean(dim=1)
    if NORM == "size":
        output = output / weight.numel()
    return (curve / (output or 1.0)).cpu()


def share(kept: list[list[Tensor]], rooms: list[Room], alpha: float) -> Tensor:
    """(linears,) float64: the fractions of which the sum of relative errors is least."""
    curves = [curve for block in kept for curve in block]
    low, high = bounds(rooms, alpha)
    target = mean(wanted(rooms), rooms)

    def below(threshold: Tensor, right: bool) -> Tensor:
        """The fractions at which no error is above the threshold, or where `right`, also none that is equal."""
        counts = [torch.searchsorted(curve, threshold, right=right) / len(curve) for curve in curves]
        return torch.stack(counts).double().clamp(low, high)

    thresholds = torch.cat(curves).unique()
    first, last = 0, len(thresholds) - 1
    while first < last:
        middle = (first + last) // 2
        if mean(below(thresholds[middle], True), rooms) < target:
            first = middle + 1
        else:
            last = middle
    fewest, most = (below(thresholds[first], right) for right in (False, True))
    gap = mean(most - fewest, rooms)
    return fewest + (most - fewest) * ((target - mean(fewest, rooms)) / gap if gap > 0 else 0.0)
