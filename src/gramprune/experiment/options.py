"""The methods as sections of config.yaml: names, options, defaults, ranges. What they do is told in their modules.

Every option has the name and the default of a parameter of the method's function; a test compares them.
"""

from __future__ import annotations

from contextlib import suppress
from math import comb, inf
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gramprune.experiment.names import Place
from gramprune.pruning.sparsity import Pattern


def _number(value: Any) -> Any:
    """A number may come as text, as `--config` has it. Raises ValueError for a boolean, which Python takes for one."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value) if isinstance(value, str) else value
    return value


AS_TEXT = BeforeValidator(_number)
Integer = Annotated[int, Field(strict=True), AS_TEXT]
Positive = Annotated[int, Field(gt=0, strict=True), AS_TEXT]
NotNegative = Annotated[float, Field(ge=0), AS_TEXT]
AboveZero = Annotated[float, Field(gt=0), AS_TEXT]


def _auto_or_above_zero(value: Any) -> Any:
    """Raises ValueError, once, for what is neither; of a union there would be an error for each of its types."""
    number = value if value == "auto" else _number(value)
    if number != "auto" and not (isinstance(number, int | float) and 0 < number < inf):
        raise ValueError(f"expected `auto` or a number above 0; found {value!r}")
    return number


AutoOrAboveZero = Annotated[Literal["auto"] | Annotated[float, Field(gt=0)], BeforeValidator(_auto_or_above_zero)]


def _auto_or_positive(value: Any) -> Any:
    """Raises ValueError, once, for what is neither."""
    number = value if value == "auto" else _number(value)
    if number != "auto" and not (isinstance(number, int) and not isinstance(number, bool) and number > 0):
        raise ValueError(f"expected `auto` or a whole number above 0; found {value!r}")
    return number


Automatic = Annotated[Literal["auto"] | Annotated[int, Field(gt=0)], BeforeValidator(_auto_or_positive)]


class Section(BaseModel):
    """A mapping in config.yaml: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


DAMPING = "Added to the Gram matrix's diagonal, in units of its mean."
ALPHA = "Half the range of the blocks' fractions; by default 0.04 at 50 %, 0.1 at 60 % and 0.15 at 70 %."
Alpha = Annotated[float, Field(gt=0, le=0.5), AS_TEXT]
MRP_PATTERNS = 256
SCALED_DAMPING = "Added to the unit diagonal: pulls towards the dense weights."


class Magnitude(Section):
    """Smallest |W| first."""

    method: Literal["magnitude"]


class Wanda(Section):
    """Smallest |W| · ‖X‖ first (arXiv 2306.11695)."""

    method: Literal["wanda"]


class Ria(Section):
    """Smallest |W| relative to its row and column first, times ‖X‖ to a power (Zhang et al., ICLR 2024)."""

    method: Literal["ria"]
    power: NotNegative = Field(0.5, description="Of the inputs' norms.")


class SparseGpt(Section):
    """The sweep over columns: each pruned weight is made up for by those to its right (arXiv 2301.00774)."""

    method: Literal["sparsegpt"]
    damping: NotNegative = Field(0.01, description=DAMPING)
    width: Positive = Field(128, description="Columns per block of the sweep.")


class MrpMask(Section):
    """Smallest loss of removing weights alone (S) or with their group (M) first (arXiv 2410.15567)."""

    method: Literal["mrp"]
    solution: Literal["auto", "S", "M"] = Field("auto", description="M needs N:M; auto is M there, else S.")
    damping: NotNegative = Field(0.01, description=DAMPING)

    def check(self, pattern: Pattern) -> None:
        """Raises ValueError for a pattern whose groups the solution cannot go through."""
        if self.solution == "M" and not pattern.group:
            raise ValueError(
                f"mrp's solution 'M' compares all patterns of a group, but sparsity {pattern} has no groups; use N:M, "
                "or solution 'S'"
            )
        count = comb(pattern.group, pattern.keep)
        if self.solution != "S" and count > MRP_PATTERNS:
            raise ValueError(
                f"mrp's solution 'M' compares {MRP_PATTERNS} patterns of a group at most, but {pattern} has {count:,}; "
                "use a smaller group, or solution 'S'"
            )


class Admm(Section):
    """ADMM in scaled coordinates for a fixed mask (arXiv 2401.02938)."""

    method: Literal["admm"]
    iterations: Positive = Field(20, description="One product with each weight matrix per iteration.")
    damping: AboveZero = Field(0.1, description=SCALED_DAMPING)
    rho: AboveZero = Field(1.0, description="Penalty ρ, in scaled coordinates.")


class GradualAdmm(Admm):
    """ADMM that re-chooses the mask while it runs (arXiv 2401.02938)."""

    ramp: Positive = Field(15, description="Iterations that re-choose the mask.")
    schedule: Literal["ramp", "jump"] = Field("ramp", description="Cubic ramp, or at once as in the released code.")

    @model_validator(mode="after")
    def _ramp_fits(self) -> GradualAdmm:
        if self.ramp > self.iterations:
            raise ValueError(f"ramp {self.ramp} is longer than iterations {self.iterations}")
        return self


class Alps(Section):
    """ADMM whose penalty grows until the mask settles, then conjugate gradients (arXiv 2406.07831)."""

    method: Literal["alps"]
    iterations: Positive = Field(300, description="At most; it stops when the mask no longer changes.")
    damping: NotNegative = Field(0.01, description=DAMPING)
    rho: AboveZero = Field(0.1, description="Penalty ρ at the start.")
    pcg: Positive = Field(10, description="Iterations of the final conjugate gradients, at most.")


class NoRefinement(Section):
    """The mask stays as it was selected."""

    method: Literal["none"]


class SparseSwaps(Section):
    """Exchange the best pair of a kept and a pruned weight in every row, or across rows, again (arXiv 2512.10922)."""

    method: Literal["sparseswaps"]
    max_swaps: Positive | None = Field(
        None, description="Per row, or per row on average over a matrix; by default until no swap helps."
    )
    tolerance: NotNegative = Field(1e-6, description="A swap must lower its row's error by more than this share.")


class DsNot(Section):
    """Prune and grow by the sign of every row's expected output error (arXiv 2310.08915)."""

    method: Literal["dsnot"]
    cycles: Positive = Field(50, description="Exchanges per row, at most.")
    threshold: NotNegative = Field(0.1, description="A row whose expected error is smaller is left alone.")


class ReoptimisedSwaps(Section):
    """Exchange pairs by their errors after the kept weights have made up for the exchange."""

    method: Literal["swaps-reoptimised"]
    damping: NotNegative = Field(0.01, description=SCALED_DAMPING)
    max_swaps: Positive | None = Field(
        None, description="Per row, or per row on average over a matrix; by default until no swap helps."
    )
    exact_inputs: Positive = Field(
        1024,
        description="Linears with at most so many inputs are searched exactly, larger ones in batches of swaps.",
    )


class NoUpdate(Section):
    """The kept weights stay as they were."""

    method: Literal["none"]


class Mrp(Section):
    """The pruned weights' interactions ignored (S) or exact (M: masked least squares) (arXiv 2410.15567)."""

    method: Literal["mrp"]
    solution: Literal["S", "M"] = Field("M", description="S removes weights one by one, M all of a row together.")
    damping: NotNegative = Field(0.01, description=DAMPING)


class Pcg(Section):
    """Preconditioned conjugate gradients for a fixed mask, all rows at once (arXiv 2406.07831)."""

    method: Literal["pcg"]
    iterations: Positive = Field(50, description="At most.")
    damping: NotNegative = Field(0.01, description=SCALED_DAMPING)
    tolerance: NotNegative = Field(1e-4, description="Stops when all residuals are smaller, relative to the first.")


class Exact(Section):
    """Masked least squares, row by row: the best weights that a mask can have."""

    method: Literal["exact"]
    damping: NotNegative = Field(0.01, description=SCALED_DAMPING)


class Joint(Section):
    """Keep the weights that the mask's method arrived at together with the mask (masks: admm, alps, sparsegpt)."""

    method: Literal["joint"]


class NoReconstruction(Section):
    """The block stays as mask and update have left it."""

    method: Literal["none"]


class BlockReconstruction(Section):
    """Train the kept weights of every block by gradient, so that the block gives what the dense block gives."""

    method: Literal["block"]
    epochs: Positive = Field(5, description="Passes over the calibration sequences.")
    learning_rate: AutoOrAboveZero = Field(
        "auto", description="Of Adam, at its highest; auto is a fiftieth of the size of a matrix' kept weights."
    )
    batch_size: Positive = Field(8, description="Sequences per step.")
    held_out: Annotated[float, Field(gt=0, lt=1), AS_TEXT] = Field(
        0.1, description="Share of the sequences by which the best epoch is chosen; no step is made on them."
    )
    region: Literal["block", "halves"] = Field(
        "block", description="What is to give the same: the block, or its attention and its MLP apart."
    )
    target: Literal["own", "dense"] = Field(
        "dense",
        description="The same as what: the dense block on the inputs that this run's block sees, or on the dense "
        "model's, so that it makes up for the blocks before too.",
    )
    train: list[Literal["weights", "norms", "biases"]] = Field(
        ["weights"], min_length=1, description="What is trained: kept weights, norms, biases. A list is no sweep here."
    )


class OwnTarget(Section):
    """Every linear is to give what its dense weights give on the inputs that it sees."""

    method: Literal["own"]


class DenseTarget(Section):
    """Every linear is to give, on the inputs that it sees, what it gives in the dense model on the inputs there."""

    method: Literal["dense"]
    pull: AboveZero = Field(0.5, description="Towards the dense weights, in units of the Gram matrix's mean diagonal.")


class UniformAllocation(Section):
    """Every linear gets what `sparsity` says."""

    method: Literal["uniform"]


class FileAllocation(Section):
    """Fractions that a file gives, by the keys of a `sparsity` that is a mapping; what none fits keeps its own."""

    method: Literal["file"]
    path: Place = Field(description="YAML or JSON. When it changes, what depends on it is made again.")


class Dlp(Section):
    """Fewer zeros for blocks with a low median of Wanda's scores (arXiv 2505.23807)."""

    method: Literal["dlp"]
    alpha: Alpha | None = Field(None, description=ALPHA)


class ErrorAllocation(Section):
    """The next zero costs as much in every block: the relative error that all blocks from there on will see."""

    method: Literal["error"]
    alpha: Alpha | None = Field(None, description=ALPHA)


def _from_name(value: Any) -> Any:
    """A method is given by its name, or as a mapping with its options."""
    return {"method": value} if isinstance(value, str) else value


def names_of(method: type[Section]) -> tuple[str, ...]:
    """The names by which a method is chosen."""
    return get_args(method.model_fields["method"].annotation)


def _one_of(*methods: type[Section]) -> Any:
    """A type: one of these methods, also accepted by its name alone, which the schema then lists too."""
    names = tuple(name for method in methods for name in names_of(method))
    schema: Any = Union[(Literal[names], *methods)]
    tagged: Any = Annotated[Union[methods], Field(discriminator="method")]  # noqa: UP007
    return Annotated[tagged, BeforeValidator(_from_name, json_schema_input_type=schema)]


METHODS: dict[str, tuple[type[Section], ...]] = {
    "mask": (Magnitude, Wanda, Ria, SparseGpt, MrpMask, GradualAdmm, Alps),
    "refine": (NoRefinement, SparseSwaps, DsNot, ReoptimisedSwaps),
    "update": (NoUpdate, Admm, SparseGpt, Mrp, Pcg, Exact, Joint),
    "target": (OwnTarget, DenseTarget),
    "reconstruct": (NoReconstruction, BlockReconstruction),
    "allocation": (UniformAllocation, FileAllocation, Dlp, ErrorAllocation),
}
"""By the run's key that chooses one."""

MaskMethod = _one_of(*METHODS["mask"])
RefineMethod = _one_of(*METHODS["refine"])
UpdateMethod = _one_of(*METHODS["update"])
Target = _one_of(*METHODS["target"])
ReconstructMethod = _one_of(*METHODS["reconstruct"])
Allocation = _one_of(*METHODS["allocation"])
JOINT = {"admm", "alps", "sparsegpt"}  # masks whose method makes weights too
