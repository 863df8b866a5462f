"""Small numerical helpers that do not copy what they look at: a job's memory is counted in its largest tensors."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

PIECE = 2**18
"""Elements that are worked on at a time where rows are independent."""
BATCH = 2**21
"""Elements of all of a batch's tensors together, on a CPU: its caches are worth more than longer batches."""


def finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; `isfinite().all()` would make a copy and three masks."""
    if not values.numel():
        return True
    low, high = values.aminmax()  # NaN if there is one
    return bool(low.isfinite() & high.isfinite())


def rows_per_piece(matrix: Tensor) -> int:
    """How many rows of a matrix (rows, n) make a piece; one at least."""
    return max(1, PIECE // max(1, matrix.shape[1]))


def rows_per_batch(width: int, like: Tensor, elements: int | None = None) -> int:
    """How many rows make a batch, if each takes `width` elements of `like`'s dtype on its device; one at least.

    elements: of a batch on a CPU. On a GPU half of the memory that is free, which is where long batches pay.
    """
    elements = elements or BATCH
    if like.is_cuda:
        reserved = torch.cuda.memory_reserved(like.device) - torch.cuda.memory_allocated(like.device)
        elements = (torch.cuda.mem_get_info(like.device)[0] + reserved) // (2 * like.element_size())
    return max(1, elements // max(1, width))


def equal_rows(
    mask: Tensor,  # (rows, n) bool
    width: Callable[[int], int],  # elements that a row with so many True takes
    like: Tensor,
    elements: int | None = None,  # of a batch on a CPU
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of rows with equally many True: row numbers (b,), columns of True (b, k) and of False (b, n − k).

    So systems of a batch have one size, without padding, whatever the pattern.
    """
    counts = mask.sum(dim=1)
    for count in counts.unique().tolist():
        for rows in (counts == count).nonzero()[:, 0].split(rows_per_batch(width(count), like, elements)):
            chosen = mask[rows]
            yield rows, *(which.nonzero()[:, 1].view(len(rows), -1) for which in (chosen, ~chosen))


def parts(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(b, i, j): `matrix[rows[b], columns[b]]` for every b; rows (b, i), columns (b, j). Fast: one flat selection."""
    short = torch.int32 if matrix.numel() < 2**31 else torch.int64  # half of the memory traffic
    flat = rows.to(short)[:, :, None] * matrix.shape[1] + columns.to(short)[:, None, :]
    return matrix.reshape(-1).index_select(0, flat.flatten()).view(flat.shape)
