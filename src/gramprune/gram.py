"""Gram matrices: accumulated from inputs, scaled to unit diagonal, factorised once.

Everything that the methods know of the calibration data is `G = XᵀX` of a linear's inputs X (tokens, in), so
everything that is derived from it (scale, dead inputs, inverses) is computed here, once, and shared by all
linears and rows that have it.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.numerics import finite, rows_per_piece

log = logging.getLogger(__name__)

ESCALATIONS = 4  # how often a damping may grow tenfold before we give up


def accumulate(
    gram: Tensor,  # (in, in) float32 or float64, changed in place
    inputs: Tensor,  # (..., in), any float dtype
) -> None:
    """`gram += XᵀX`, in the Gram matrix's dtype."""
    rows = inputs.reshape(-1, inputs.shape[-1]).to(gram.dtype)
    gram.addmm_(rows.T, rows)


def layer_error(
    weight: Tensor,  # (out, in) dense
    new: Tensor,  # (out, in) pruned
    gram: Tensor | Gram,  # (in, in)
) -> float:
    """`‖X Wᵀ − X Vᵀ‖²_F = Σ_rows (w−v) G (w−v)ᵀ`, in the units of the squared outputs, summed over tokens."""
    matrix = gram.matrix if isinstance(gram, Gram) else gram
    piece = rows_per_piece(weight)
    total = 0.0
    for rows, others in zip(weight.split(piece), new.split(piece), strict=True):
        difference = rows.to(matrix.dtype) - others.to(matrix.dtype)
        # Summed in float64: the rows' errors differ by orders of magnitude.
        total += float((difference @ matrix).mul_(difference).sum(dtype=torch.float64))
    return total


class Gram:
    """A Gram matrix with what is derived from it; inverses are computed on first use and kept.

    matrix: (in, in) float32 or float64, symmetric; tokens are summed, not averaged.
    name: how errors call it, usually block and linear.
    Raises GrampruneError if the matrix is not square or not finite.
    """

    def __init__(self, matrix: Tensor, name: str = "the layer"):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise GrampruneError(f"{name}: the Gram matrix is not square but {tuple(matrix.shape)}.")
        if not matrix.is_floating_point() or matrix.dtype in (torch.float16, torch.bfloat16):
            raise GrampruneError(f"{name}: the Gram matrix is {matrix.dtype}, expected float32 or float64.")
        diagonal = matrix.diagonal()
        if not finite(matrix) or (diagonal < 0).any():
            raise GrampruneError(
                f"{name}: the Gram matrix holds NaN, infinite or negative diagonal values: "
                "the calibration activations overflowed; try `dtype: float32`."
            )
        self.matrix = matrix
        self.name = name
        self.norms = diagonal.sqrt()
        """(in,) norm of every input over the calibration tokens."""
        self.dead = self.norms == 0
        """(in,) bool, inputs that were zero on every token: they have no effect on the output."""
        self._inverses: dict[tuple[float, float], tuple[Tensor, float]] = {}

    @property
    def scale(self) -> Tensor:
        """(in,) the norms with 1 in the place of a dead input's 0, so that one can divide by it."""
        return self.norms.masked_fill(self.dead, 1)

    def scaled(self) -> Tensor:
        """(in, in), new: `Ĝ = G / (n nᵀ)`, unit diagonal, zero rows and columns at dead inputs."""
        return (self.matrix / self.scale[:, None]).div_(self.scale[None, :])

    def inverse(self, damping: float, shift: float = 0.0) -> tuple[Tensor, float]:
        """`(Ĝ + (damping + shift) I)⁻¹` by Cholesky, and the damping that was needed.

        A matrix that is not positive definite gets ten times the damping, `ESCALATIONS` times at most, each
        step logged; `shift` (ADMM's ρ) stays. Raises GrampruneError when that is not enough.
        """
        key = (damping, shift)
        if key not in self._inverses:
            self._inverses[key] = self._invert(damping, shift)
        return self._inverses[key]

    def _invert(self, damping: float, shift: float) -> tuple[Tensor, float]:
        used = damping
        for _ in range(ESCALATIONS + 1):
            inverse = self.scaled()
            inverse.diagonal().add_(used + shift)
            info = torch.empty(0, dtype=torch.int32, device=inverse.device)
            torch.linalg.cholesky_ex(inverse, out=(inverse, info))  # in place: these are a job's largest tensors
            if not info.any():
                return torch.cholesky_inverse(inverse, out=inverse), used
            stronger = max(used * 10, 1e-6)
            log.warning("%s: not positive definite with damping %g, trying %g.", self.name, used, stronger)
            used = stronger
        raise GrampruneError(
            f"{self.name}: the Gram matrix is not positive definite even with damping {used / 10:g}: it is broken "
            "or was accumulated in too low a precision; set `calibration.accumulate: float64` or use more samples."
        )


def as_gram(gram: Tensor | Gram, name: str = "the layer") -> Gram:
    """A plain matrix wrapped, a `Gram` as it is."""
    return gram if isinstance(gram, Gram) else Gram(gram, name)
