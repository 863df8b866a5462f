"""Small numerical helpers that do not copy what they look at: a job's memory is counted in its largest tensors."""

from torch import Tensor

PIECE = 2**18
"""Elements that are worked on at a time where rows are independent."""


def finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; `isfinite().all()` would make a copy and three masks."""
    if not values.numel():
        return True
    low, high = values.aminmax()  # NaN if there is one
    return bool(low.isfinite() & high.isfinite())


def rows_per_piece(matrix: Tensor) -> int:
    """How many rows of a matrix (rows, n) make a piece; one at least."""
    return max(1, PIECE // max(1, matrix.shape[1]))
