"""Gram matrices: accumulated from inputs, scaled to unit diagonal, factorised once.

Everything that the methods know of the calibration data is `G = XᵀX` of a linear's inputs X (tokens, in), so
everything that is derived from it (scale, dead inputs, inverses) is computed here, once, and shared by all
linears and rows that have it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning.numerics import finite, rows_per_piece

log = logging.getLogger(__name__)

ESCALATIONS = 4  # how often a damping may grow tenfold before we give up


def accumulate(
    gram: Tensor,  # (in, in) float32 or float64, changed in place
    inputs: Tensor,  # (..., in), any float dtype
    others: Tensor | None = None,  # (..., in), for the same tokens
) -> None:
    """`gram += XᵀX`, in the Gram matrix's dtype; with other inputs Y `gram += XᵀY`."""
    rows = inputs.reshape(-1, inputs.shape[-1]).to(gram.dtype)
    gram.addmm_(rows.T, rows if others is None else others.reshape(-1, others.shape[-1]).to(gram.dtype))


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
    """A Gram matrix with what is derived from it; factorisations are computed on first use and kept.

    All of them are in scaled coordinates, `Ĝ = G / (n nᵀ)` with weights `Ŵ = W · n`, where n are the inputs' norms:
    layer errors are the same there, and damping and step sizes fit every layer. `Ĥ` is the damped `Ĝ`:

    * damping δ adds δ to the unit diagonal, which is δ·diag(G) in G's own coordinates;
    * with `even=True` it adds δ·mean(diag G) to every entry of G's diagonal, as SparseGPT does.

    A matrix that is not positive definite gets ten times the damping, `ESCALATIONS` times at most, each step logged.
    What was needed is returned beside every factorisation. GrampruneError is raised when that is not enough.

    matrix: (in, in) float32 or float64, symmetric; tokens are summed, not averaged.
    name: how errors call it, usually block and linear.
    sums, tokens: (in,) inputs summed over tokens, and how many those were; only some methods need them.
    Raises GrampruneError if the matrix is not square or not finite.
    """

    def __init__(self, matrix: Tensor, name: str = "the layer", sums: Tensor | None = None, tokens: int | None = None):
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
        self.sums, self.tokens = sums, tokens
        self.norms = diagonal.sqrt()
        """(in,) norm of every input over the calibration tokens."""
        self.dead = self.norms == 0
        """(in,) bool, inputs that were zero on every token: they have no effect on the output."""
        self._kept: dict[tuple, tuple[Tensor, float]] = {}

    @property
    def scale(self) -> Tensor:
        """(in,) the norms with 1 in the place of a dead input's 0, so that one can divide by it."""
        return self.norms.masked_fill(self.dead, 1)

    def scaled(self) -> Tensor:
        """(in, in), new: `Ĝ = G / (n nᵀ)`, unit diagonal, zero rows and columns at dead inputs."""
        return (self.matrix / self.scale[:, None]).div_(self.scale[None, :])

    def unscaled(self, new: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        """Updated weights `new` (out, in), used up, back from scaled coordinates, and zero outside the mask.

        A dead input changes nothing: where the mask keeps it, its weights stay those of `weight`.
        """
        return new.div_(self.scale).where(~self.dead, weight).where(mask, 0)

    def damped(self, damping: float, even: bool = False) -> tuple[Tensor, float]:
        """`Ĥ` (in, in), positive definite, and the damping that was needed."""

        def make() -> tuple[Tensor, float]:
            used = self._factor(damping, even)[1]
            return self._shifted(used, even), used

        return self._once(("damped", damping, even), make)

    def inverse(
        self, damping: float, shift: float = 0.0, even: bool = False, keep: bool = True
    ) -> tuple[Tensor, float]:
        """`(Ĥ + shift I)⁻¹` (in, in), and the damping that was needed; `shift` (ADMM's ρ) never grows.

        `keep=False` for one of many shifts: the caller alone holds it.
        """

        def make() -> tuple[Tensor, float]:
            factor, used = self._factor(damping, even, shift)
            return torch.cholesky_inverse(factor, out=factor), used

        return self._once(("inverse", damping, even, shift), make) if keep else make()

    def inverse_factor(self, damping: float, even: bool = False) -> tuple[Tensor, float]:
        """`C` (in, in), upper triangular with `Ĥ⁻¹ = CᵀC`, and the damping that was needed.

        Row j of C is what removing input j does to the inputs after it, when those before it are settled.
        """

        def make() -> tuple[Tensor, float]:
            # With the inputs in reverse order Cholesky gives the upper `C⁻¹` at once: Ĥ itself need not be inverted.
            factor, used = self._factor(damping, even, flip=True)
            identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
            return torch.linalg.solve_triangular(factor.flip(0, 1), identity, upper=True), used

        return self._once(("inverse factor", damping, even), make)

    def _once(self, key: tuple, make: Callable[[], tuple[Tensor, float]]) -> tuple[Tensor, float]:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _shifted(self, damping: float, even: bool, shift: float = 0.0) -> Tensor:
        """`Ĥ + shift I`, new. Evenly damped dead inputs, which have no scale, get the plain damping."""
        system = self.scaled()
        if even and damping:
            diagonal = self.matrix.diagonal()
            ridge = (damping * diagonal[~self.dead].mean() / diagonal).masked_fill_(self.dead, damping)
            system.diagonal().add_(ridge)
        else:
            system.diagonal().add_(damping)
        system.diagonal().add_(shift)
        return system

    def _factor(self, damping: float, even: bool, shift: float = 0.0, flip: bool = False) -> tuple[Tensor, float]:
        """Lower Cholesky factor of `Ĥ + shift I`, if `flip` with inputs in reverse order, and the damping needed."""
        used = damping
        for _ in range(ESCALATIONS + 1):
            factor = self._shifted(used, even, shift)
            factor = factor.flip(0, 1) if flip else factor
            info = torch.empty(0, dtype=torch.int32, device=factor.device)
            torch.linalg.cholesky_ex(factor, out=(factor, info))  # in place: these are a job's largest tensors
            if not info.any():
                return factor, used
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
