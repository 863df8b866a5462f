"""Exchanges between the rows of a matrix whose zeros are counted over the whole of it.

Rows' errors add up, and what one row loses does not depend on the others: pruning a kept weight of row i and keeping a
pruned one of row j changes the layer error by the sum of two numbers, one of each row. So the best pair is the cheapest
removal and the best addition, and many pairs of different rows can be exchanged at once.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import torch
from torch import Tensor


def matched(
    removals: Tensor,  # (rows, n) changes of the error when a row removes its 1st, 2nd, … weight
    additions: Tensor,  # (rows, n) the same for the weights that it may add
    limit: int,  # exchanges at most
) -> Tensor:
    """(rows,) int64: how many weights each row adds, or removes where negative; they sum to zero.

    The best pair of different rows comes first, then the best of what is left, while the sum is below zero. A row
    either adds or removes.
    """
    changes = {-1: removals.tolist(), 1: additions.tolist()}
    net = [0] * len(removals)
    heaps = {sign: [(row[0], i) for i, row in enumerate(rows) if row] for sign, rows in changes.items()}
    for heap in heaps.values():
        heapify(heap)

    def first(sign: int) -> tuple[float, int]:
        heap = heaps[sign]
        while heap and net[heap[0][1]] * sign < 0:  # the row does the other already
            heappop(heap)
        return heap[0] if heap else (float("inf"), -1)

    for _ in range(limit):
        out, into = first(-1), first(1)
        if out[1] == into[1] >= 0:  # the best row of both kinds: it takes the part that leaves the better pair
            heappop(heaps[-1]), heappop(heaps[1])
            if out[0] + first(1)[0] <= first(-1)[0] + into[0]:
                heappush(heaps[-1], out)
            else:
                heappush(heaps[1], into)
            out, into = first(-1), first(1)
        if not out[0] + into[0] < 0:
            break
        for sign, (_, row) in ((-1, out), (1, into)):
            heappop(heaps[sign])
            net[row] += sign
            if abs(net[row]) < len(changes[sign][row]):
                heappush(heaps[sign], (changes[sign][row][abs(net[row])], row))
    return torch.tensor(net, dtype=torch.int64, device=removals.device)


def improvable(
    removals: Tensor,  # (rows,) change of the error by a row's cheapest removal
    additions: Tensor,  # (rows,) and by its best addition
) -> Tensor:
    """(rows,) bool: rows of a pair whose changes sum to less than zero, the two rows being different."""
    found = torch.zeros_like(removals, dtype=torch.bool)
    if len(removals) > 1:
        for own, others in ((removals, additions), (additions, removals)):
            (best, second), (place, _) = others.topk(2, largest=False)
            partner = best.expand(len(own)).clone()
            partner[place] = second
            found |= own + partner < 0
    return found
