"""Gram matrices: accumulated from inputs, scaled to unit diagonal, factorised once.

Everything that the methods know of the calibration data is `G = XᵀX` of a linear's inputs X (tokens, in), so
everything that is derived from it (scale, dead inputs, inverses) is computed here, once, and shared by all
linears and rows that have it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import combinations_with_replacement
from types import NoneType

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning import arguments
from gramprune.pruning.numerics import finite, rows_per_piece

log = logging.getLogger(__name__)

ESCALATIONS = 4  # how often a damping may grow tenfold before we give up
TILE = 256  # rows and columns of a Gram matrix that are looked at together by a CPU; a GPU takes eight times as many
PRODUCT = 2048  # rows of a Gram matrix that tensor cores add to at a time
SLACK = 0.01
"""Of an entry, relative to its two inputs' norms: more than rounding does to float32 sums over a million tokens, in any
order, or to a matrix that was once stored in bfloat16."""


def accumulate(
    gram: Tensor,  # (in, in) float32 or float64, changed in place
    inputs: Tensor,  # (..., in), any float dtype
    others: Tensor | None = None,  # (..., in), for the same tokens
) -> None:
    """`gram += XᵀX`, in the Gram matrix's dtype; with other inputs Y `gram += XᵀY`.

    A Gram matrix is symmetric: its upper half is computed, in panels of rows, and copied to the lower one.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    right = rows if others is None else others.reshape(-1, others.shape[-1])
    # A bfloat16 has 8 significant bits, so the product of two is exact in float32, which has 24. Tensor cores sum such
    # products in float32: the same sums as of converted inputs, but for their order, at ten times the rate.
    exact = gram.dtype == torch.float32 and _on_tensor_cores(rows) and _on_tensor_cores(right)
    if not exact:
        right = right.to(gram.dtype)
        rows = right if others is None else rows.to(gram.dtype)
    panels = PRODUCT if gram.is_cuda else TILE if others is None else len(gram)
    for start in range(0, len(gram), panels):
        panel, end = slice(start, start + panels), start + panels
        first = start if others is None else 0
        if exact:
            gram[panel, first:].add_(torch.mm(rows[:, panel].T, right[:, first:], out_dtype=torch.float32))
        else:
            gram[panel, first:].addmm_(rows[:, panel].T, right[:, first:])
        if others is None:
            gram[end:, panel] = gram[panel, end:].T


def _on_tensor_cores(inputs: Tensor) -> bool:
    """Whether torch multiplies such inputs to float32; it does so with CUDA alone."""
    return inputs.dtype == torch.bfloat16 and inputs.is_cuda and torch.version.cuda is not None


def layer_error(
    weight: Tensor,  # (out, in) dense
    new: Tensor,  # (out, in) pruned
    gram: Tensor | Gram,  # (in, in)
) -> float:
    """`‖X Wᵀ − X Vᵀ‖²_F = Σ_rows (w−v) G (w−v)ᵀ`, in the units of the squared outputs, summed over tokens.

    Weights may have any float dtype; the products are computed in the Gram matrix's, and summed up in float64.
    Raises GrampruneError for arguments of other types or shapes, and for an error that is not finite.

    It is what the outputs change by, without the inputs:

    >>> inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> weight, new = torch.tensor([[2.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    >>> gp.layer_error(weight, new, inputs.T @ inputs)
    20.0
    >>> (inputs @ weight.T - inputs @ new.T).square().sum()
    tensor(20.)
    """
    gram = as_gram(gram)
    matrix, device = gram.matrix, gram.matrix.device
    weight = arguments.tensor(weight, f"{gram.name}: weight", ("out", len(matrix)), device=device)
    new = arguments.tensor(new, f"{gram.name}: new", tuple(weight.shape), device=device)
    piece = rows_per_piece(weight)
    total = 0.0
    for rows, others in zip(weight.split(piece), new.split(piece), strict=True):
        difference = rows.to(matrix.dtype) - others.to(matrix.dtype)
        # Summed in float64: the rows' errors differ by orders of magnitude.
        total += float((difference @ matrix).mul_(difference).sum(dtype=torch.float64))
    if not math.isfinite(total):
        for name, values in (("weight", weight), ("new", new)):
            arguments.finite(values.to(matrix.dtype), f"{gram.name}: {name}")
        raise GrampruneError(f"{gram.name}: the layer error overflows in {matrix.dtype}; use a float64 Gram matrix.")
    return total


class Gram:
    """A Gram matrix with what is derived from it; factorisations are computed on first use and kept.

    All of them are in scaled coordinates, `Ĝ = G / (n nᵀ)` with weights `Ŵ = W · n`, where n are the inputs' norms:
    layer errors are the same there, and damping and step sizes fit every layer. `Ĥ` is the damped `Ĝ`:

    * damping δ adds δ to the unit diagonal, which is δ·diag(G) in G's own coordinates;
    * with `even=True` it adds δ·mean(diag G) to every entry of G's diagonal, as SparseGPT does.

    A matrix that is not positive definite gets ten times the damping, `ESCALATIONS` times at most, each step logged.
    What was needed is returned beside every factorisation. GrampruneError is raised when that is not enough.

    matrix: (in, in) float32 or float64; tokens are summed, not averaged.
    name: how errors call it, usually block and linear.
    sums, tokens: (in,) inputs summed over tokens, and how many those were; only some methods need them.
    Raises GrampruneError for a matrix that is XᵀX of no inputs X: not square, not finite, not symmetric, or with an
    entry that is larger than its diagonal allows. That is looked at once, here.

    >>> inputs = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    >>> gram = gp.Gram(inputs.T @ inputs, name="block 0, q_proj")
    >>> gram.norms, gram.dead
    (tensor([5., 0.]), tensor([False,  True]))

    One `Gram` for all linears with these inputs: what they need of it is computed for the first of them. Methods take a
    plain matrix too, and a matrix that is none is refused:

    >>> gp.Gram(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), name="block 0, q_proj")
    Traceback (most recent call last):
    gramprune.errors.GrampruneError: block 0, q_proj: the Gram matrix's entry (0, 1) is 2 and (1, 0) is 0; expected a \
symmetric matrix, XᵀX.
    """

    def __init__(self, matrix: Tensor, name: str = "the layer", sums: Tensor | None = None, tokens: int | None = None):
        name = arguments.typed(name, "the Gram matrix's name", str)
        matrix = arguments.tensor(matrix, f"{name}: the Gram matrix", ("in", "in"), (torch.float32, torch.float64))
        self.matrix = matrix.contiguous()
        self.name = name
        self.norms = matrix.diagonal().sqrt()
        """(in,) norm of every input over the calibration tokens."""
        _check_entries(self.matrix, self.norms, name)
        self.tokens = arguments.typed(tokens, f"{name}: tokens", int, NoneType)
        if tokens is not None and self.tokens < 1:
            raise GrampruneError(f"{name}: tokens is {tokens}; expected 1 or more.")
        self.sums = None if sums is None else self._checked_sums(sums)
        self.dead = self.norms == 0
        """(in,) bool, inputs that were zero on every token: they have no effect on the output."""
        self._kept: dict[tuple, tuple[Tensor, float]] = {}

    def _checked_sums(self, sums: Tensor) -> Tensor:
        """The inputs' sums. Raises GrampruneError for sums that so many inputs with these norms cannot have."""
        sums = arguments.tensor(sums, f"{self.name}: sums", (len(self.matrix),), device=self.matrix.device)
        arguments.finite(sums, f"{self.name}: sums")
        if self.tokens:
            largest = (1 + SLACK) * self.tokens**0.5 * _reach(self.norms)
            if (sums.abs() > largest).any():
                j = int((sums.abs() - largest).argmax())
                raise GrampruneError(
                    f"{self.name}: sums has {sums[j]:.6g} for input {j}, more than {self.tokens:,} tokens with the "
                    f"norm {self.norms[j]:.6g} can have; expected the sums of what the Gram matrix is of."
                )
        return sums

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


def _reach(norms: Tensor) -> Tensor:
    """(in,) the norms that inputs may have had: squares may be too small for the dtype where other products are not."""
    return norms.clamp(min=(2 * torch.finfo(norms.dtype).tiny) ** 0.5)


def _check_entries(matrix: Tensor, norms: Tensor, name: str) -> None:
    """Raises GrampruneError unless G is symmetric and `|G_ij| ≤ n_i n_j`, but for rounding, as every XᵀX is.

    norms: (in,), NaN where the diagonal is negative. In pieces, and without waiting for a GPU before the end.
    """
    reach = _reach(norms)
    side = TILE if matrix.is_cpu else 8 * TILE
    parts = [slice(start, start + side) for start in range(0, len(norms), side)]
    tiles = list(combinations_with_replacement(parts, 2))

    def measured(rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """|G_ij − G_ji| and |G_ij|, relative to n_i n_j."""
        tile, room = matrix[rows, columns], reach[rows, None] * reach[columns]
        return (tile - matrix[columns, rows].T).abs_().div_(room), tile.abs().div_(room)

    largest = torch.stack([torch.stack([part.amax() for part in measured(*tile)]) for tile in tiles]).tolist()
    for tile, (gap, size) in zip(tiles, largest, strict=True):
        if gap <= SLACK and size <= 1 + SLACK:  # false for NaN
            continue
        if not finite(matrix):
            raise GrampruneError(
                f"{name}: the Gram matrix holds NaN or infinite values: the calibration activations overflowed; try "
                "`dtype: float32`."
            )
        if not finite(norms):
            i = int(norms.isnan().nonzero()[0])
            raise GrampruneError(
                f"{name}: the Gram matrix's entry ({i}, {i}) is {matrix[i, i]:.6g}; expected XᵀX, which has no "
                "negative values on its diagonal."
            )
        part = measured(*tile)[0 if gap > SLACK else 1]
        i, j = (part == part.amax()).nonzero()[0].tolist()
        i, j = tile[0].start + i, tile[1].start + j
        found = f"{name}: the Gram matrix's entry ({i}, {j}) is {matrix[i, j]:.6g}"
        if gap > SLACK:
            raise GrampruneError(f"{found} and ({j}, {i}) is {matrix[j, i]:.6g}; expected a symmetric matrix, XᵀX.")
        raise GrampruneError(
            f"{found} and the diagonal's {matrix[i, i]:.6g} and {matrix[j, j]:.6g}; expected XᵀX, where no entry is "
            "larger than the root of their product."
        )


def as_gram(gram: Tensor | Gram, name: str = "the layer") -> Gram:
    """A plain matrix wrapped, a `Gram` as it is."""
    return gram if isinstance(gram, Gram) else Gram(gram, name)
