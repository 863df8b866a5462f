"""One run as a section of config.yaml, and what each of its stages depends on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from gramprune.errors import GrampruneError
from gramprune.experiment import patterns, sweep
from gramprune.experiment.names import Name
from gramprune.experiment.options import (
    JOINT,
    Allocation,
    BlockReconstruction,
    MaskMethod,
    MrpMask,
    NoReconstruction,
    NoRefinement,
    NoUpdate,
    OwnTarget,
    ReconstructMethod,
    RefineMethod,
    Section,
    Target,
    UniformAllocation,
    UpdateMethod,
)
from gramprune.experiment.recipes import RECIPES, filled
from gramprune.pruning.sparsity import Pattern
from gramprune.storage.fingerprint import canonical, short


class Run(Section):
    """One recipe: sparsity × allocation × mask × refinement × update × propagation × target × reconstruction.

    A list in the place of a value, of a method's option too, stands for a run per value; several lists stand for all
    combinations that can be.
    """

    name: Name = Field("", description="Folder in results; made from the recipe by default.", validate_default=False)
    recipe: Literal[tuple(RECIPES)] | None = Field(  # type: ignore[valid-type]
        None,
        description="A named recipe: what it says of mask, refine, update, target and granularity holds where the run "
        "says nothing.",
    )
    sparsity: float | str | dict[str, float | str] = Field(
        description="Fraction of zeros, or N:M (at most N of M neighbours are kept). Or a mapping to fractions, N:M "
        "and `dense` from `default`, patterns of linears (`*.down_proj`), blocks (`block 0`, `block 4-7`, `block -1`) "
        "or both (`block 0 *.down_proj`): the nearest that fits a linear holds, a block before linears."
    )
    granularity: Literal["row", "matrix"] = Field(
        "row",
        description="Where a fraction is counted: in every output row, or in the whole matrix. Not for N:M. `row` is "
        "what Wanda's authors take, and better for masks without an update; with one, try both (docs/methods.md).",
    )
    allocation: Allocation = Field(
        UniformAllocation(method="uniform"),
        description="How the zeros of what has a fraction are divided: as `sparsity` says, or more in some blocks and "
        "fewer in others, by the dense model's Gram matrices, or by a file.",
    )
    mask: MaskMethod = Field(description="How the kept weights are chosen.")
    refine: RefineMethod = Field(NoRefinement(method="none"), description="How the mask is improved.")
    update: UpdateMethod = Field(
        NoUpdate(method="none"), description="How the kept weights make up for the pruned ones."
    )
    propagation: Literal["pruned", "dense"] = Field(
        "pruned",
        description="What later blocks see: activations of the pruned blocks before (the papers' protocol; blocks form "
        "a chain), or of the dense model (blocks are independent, runs share all Gram matrices).",
    )
    target: Target = Field(
        OwnTarget(method="own"),
        description="What a pruned linear is to be like: itself before, or its place in the dense model, so that it "
        "makes up for the blocks before too (with `propagation: pruned` and an update).",
    )
    bias: Literal["kept", "compensated"] = Field(
        "kept",
        description="Whether the bias of a linear that has one makes up for what pruning does to the mean of its "
        "outputs; masks and updates then see its inputs minus their mean (with `target: own` and an update).",
    )
    reconstruct: ReconstructMethod = Field(
        NoReconstruction(method="none"),
        description="Whether the kept weights of every block are trained afterwards, all matrices of it together.",
    )
    precision: Literal["float32", "float64"] = Field(
        "float32", description="Dtype in which masks, refinements and updates are computed."
    )
    _whole: Any = PrivateAttr(None)
    """Of a run at a block: the sparsity of all blocks, on which an allocation depends."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": sweep.name_of(value), **filled(value)} if isinstance(value, dict) else value

    @field_validator("sparsity", mode="before")
    @classmethod
    def _parses(cls, value: Any) -> Any:
        if isinstance(value, dict):
            keyed = {str(key): each if each == patterns.DENSE else cls._parses_one(each) for key, each in value.items()}
            patterns.check(keyed)
            return keyed
        return cls._parses_one(value)

    @classmethod
    def _parses_one(cls, value: Any) -> float | str:
        if type(value) is int and 0 < value // 60 < value % 60:  # to base 60, as YAML 1.1 counts times
            raise ValueError(
                f'put {value // 60}:{value % 60} in quotes: "{value // 60}:{value % 60}"; YAML reads {value}'
            )
        try:
            Pattern.parse(value)
        except GrampruneError as error:
            raise ValueError(str(error)) from error
        return str(value) if isinstance(value, str) and ":" in value else float(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Run:
        if self.joint and self.mask.method not in JOINT:
            raise ValueError(
                f"update 'joint' keeps the weights of a mask method that makes weights, but mask "
                f"{self.mask.method!r} makes none; use one of {', '.join(sorted(JOINT))}, or another update"
            )
        if self.joint and self.refined:
            raise ValueError(
                f"update 'joint' keeps weights that belong to the mask as it was selected, but refine "
                f"{self.refine.method!r} changes it; use another update, or refine 'none'"
            )
        if self.retargeted and self.propagation == "dense":
            raise ValueError(
                "target 'dense' makes up for what the pruned blocks before have changed, but with propagation 'dense' "
                "every block sees the dense model's activations; use propagation 'pruned', or target 'own'"
            )
        if self.retargeted and not self.updated:
            raise ValueError("target 'dense' moves weights, but update 'none' keeps them as they were; use an update")
        if self.bias == "compensated" and (self.retargeted or not self.updated):
            found = (
                "target 'dense' aims at outputs with another mean" if self.retargeted else "update 'none' moves none"
            )
            raise ValueError(
                f"bias 'compensated' moves biases together with weights, but {found}; use target 'own' and an update, "
                "or bias 'kept'"
            )
        if self.granularity == "matrix" and patterns.grouped(self.sparsity):
            raise ValueError(
                f"granularity 'matrix' says where a fraction is counted, but sparsity "
                f"{patterns.label(self.sparsity)!r} is counted in groups; leave granularity out, or give a fraction"
            )
        if self.allocated and patterns.grouped(self.sparsity):
            raise ValueError(
                f"allocation {self.allocation.method!r} divides zeros that are counted as a fraction, but sparsity "
                f"{patterns.label(self.sparsity)!r} is the same for all groups; use allocation 'uniform', or a fraction"
            )
        if isinstance(self.mask, MrpMask):
            for value in patterns.values(self.sparsity):
                self.mask.check(Pattern.parse(value, "row" if ":" in str(value) else self.granularity))
        return self

    def at(
        self,
        block: int,
        blocks: int,  # how many there are
        linears: Iterable[str],  # of the block, that may be pruned
        dense_inputs: bool = False,  # whether it sees the dense model's inputs: both targets are the same there
    ) -> Run:
        """The same run as one block sees it; its sparsity is one value or, where linears differ, by their names."""
        changes: dict[str, Any] = {"target": OwnTarget(method="own")} if dense_inputs else {}
        if isinstance(self.sparsity, dict):
            changes["sparsity"] = patterns.at_block(self.sparsity, block, blocks, linears)
        found = self.model_copy(update=changes)
        found._whole = self.sparsity
        return found

    def pattern_of(self, linear: str) -> Pattern | None:
        """A linear's pattern, of a run at a block; none if it stays dense."""
        value = self.sparsity[linear] if isinstance(self.sparsity, dict) else self.sparsity
        return patterns.pattern(value, self.granularity)

    @property
    def pattern_label(self) -> tuple[str, str]:
        """Sparsity and granularity for tables."""
        return patterns.label(self.sparsity), "group" if patterns.grouped(self.sparsity) else self.granularity

    @property
    def pattern_slug(self) -> str:
        """The patterns of a block as a part of a file name."""
        return "_".join([self._slug_of(self.sparsity), *([self.allocation_slug] if self.allocated else [])])

    def _slug_of(self, sparsity: Any) -> str:
        if isinstance(sparsity, dict):
            return f"mixed-{short(canonical(sparsity))}_{self.granularity}"
        found = patterns.pattern(sparsity, self.granularity)
        return found.slug if found else patterns.DENSE

    @property
    def allocated(self) -> bool:
        """Whether its linears get other fractions than its sparsity says."""
        return self.allocation.method != "uniform"

    @property
    def allocation_slug(self) -> str:
        """A file name for its allocation: the same for all runs that have the same, and for its blocks."""
        return _slug(self.allocation, self._slug_of(self.sparsity if self._whole is None else self._whole))

    @property
    def allocation_module(self) -> str:
        """The module of its allocation's method, below `gramprune.pruning`."""
        return f"allocation.{self.allocation.method}"

    @property
    def allocation_settings(self) -> dict[str, Any]:
        """What its allocation is by, but for the fractions that it starts from, and the content of its file."""
        return {**_split(self.allocation, exclude={"path"}), "granularity": self.granularity}

    @property
    def from_grams(self) -> bool:
        """Whether its allocation depends on the dense model's Gram matrices."""
        return self.allocation.method not in ("uniform", "file")

    @property
    def joint(self) -> bool:
        """Whether one method chooses mask and weights together."""
        return self.update.method == "joint"

    @property
    def refined(self) -> bool:
        """Whether its masks are improved after their selection."""
        return self.refine.method != "none"

    @property
    def updated(self) -> bool:
        """Whether its blocks have weights of their own; else they are the dense ones under its masks."""
        return self.update.method != "none"

    @property
    def retargeted(self) -> bool:
        """Whether its linears aim at the dense model's outputs."""
        return self.target.method == "dense"

    @property
    def reconstructed(self) -> bool:
        """Whether its blocks' kept weights are trained after the update."""
        return self.reconstruct.method != "none"

    @property
    def follows_dense(self) -> bool:
        """Whether its reconstruction aims at what the dense model's blocks give."""
        return isinstance(self.reconstruct, BlockReconstruction) and self.reconstruct.target == "dense"

    @property
    def sees_dense(self) -> bool:
        """Whether it needs what enters every block of the dense model."""
        return self.propagation == "dense" or self.retargeted or self.follows_dense

    @property
    def problem_settings(self) -> dict[str, Any]:
        """Which weights the pruned ones are to be like, and in which dtype that is computed: for all its stages."""
        moved = {"bias": self.bias} if self.bias != "kept" else {}
        return {"precision": self.precision, "target": self.target.model_dump(), **moved}

    @property
    def pattern_settings(self) -> dict[str, Any]:
        """Where its zeros may be, of a run at a block."""
        divided = {"allocation": self.allocation.model_dump()} if self.allocated else {}
        return {"pattern": self.sparsity, "granularity": self.granularity, **divided}

    @property
    def described(self) -> dict[str, Any]:
        """All its settings; allocation, bias and reconstruction only where there is something."""
        there = {"allocation": self.allocated, "bias": self.bias != "kept", "reconstruct": self.reconstructed}
        return self.model_dump(exclude={name for name, whether in there.items() if not whether})

    @property
    def mask_settings(self) -> dict[str, Any]:
        """All that its masks depend on, besides Gram matrices and weights."""
        return {**_split(self.mask), **self.pattern_settings, **self.problem_settings}

    @property
    def mask_module(self) -> str:
        """The module of its mask's method, below `gramprune.pruning`."""
        return f"{'joint' if self.mask.method in JOINT else 'masks'}.{self.mask.method}"

    @property
    def mask_slug(self) -> str:
        """A file name for its masks: the same for all runs with the same mask settings."""
        parts = [_slug(self.mask, self.pattern_slug)]
        if self.precision != "float32":
            parts.append(self.precision)
        if self.retargeted:
            parts.append("to-" + _slug(self.target))
        if self.bias != "kept":
            parts.append(f"bias-{self.bias}")
        return "_".join(parts)

    @property
    def refine_settings(self) -> dict[str, Any]:
        """All that its refinement depends on, besides masks, Gram matrices and weights."""
        return {**_split(self.refine), **self.pattern_settings, **self.problem_settings}

    @property
    def refine_module(self) -> str:
        """The module of its refinement's method, below `gramprune.pruning`."""
        return f"refine.{self.refine.method}"

    @property
    def refine_slug(self) -> str:
        """A file name for its refinement, behind that of the masks."""
        return _slug(self.refine)

    @property
    def final_mask(self) -> str:
        """A file name for the masks that its weights have, refined or not."""
        return f"{self.mask_slug}+{self.refine_slug}" if self.refined else self.mask_slug

    @property
    def update_module(self) -> str:
        """The module of its update's method, below `gramprune.pruning`."""
        return self.mask_module if self.joint else f"updates.{self.update.method}"

    @property
    def update_settings(self) -> dict[str, Any]:
        """All that its updates depend on, besides masks, Gram matrices and weights."""
        return self.mask_settings if self.joint else {**_split(self.update), **self.problem_settings}

    @property
    def reconstruct_settings(self) -> dict[str, Any]:
        """All that its reconstruction depends on, besides hidden states and the weights before it."""
        split = _split(self.reconstruct)
        split["options"].pop("target", None)  # it is the other input file
        return split


def _split(method: Section, exclude: set[str] | None = None) -> dict[str, Any]:
    options = method.model_dump(exclude=exclude)
    return {"method": options.pop("method"), "options": options}


def _slug(method: Section, *more: str) -> str:
    """A method as a file name: with eight digits that stand for its options where they are not the defaults."""
    options = method.model_dump(exclude_defaults=True)
    return "_".join([options.pop("method"), *more, *([short(canonical(options))] if options else [])])
