"""The configuration as models: the single source of keys, defaults and checks.

The JSON schema and the reference are made from it: after a change, run `python -m gramprune.experiment.reference`.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import compress
from math import floor
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from gramprune.errors import GrampruneError, suggest
from gramprune.experiment import mistakes, outputs, sweep
from gramprune.experiment.inputs import EMBEDDED, Dataset, Model
from gramprune.experiment.names import DEVICE, Name, Place, distinct, slug
from gramprune.experiment.options import (
    AS_TEXT,
    AboveZero,
    Automatic,
    Integer,
    Positive,
    Section,
)
from gramprune.experiment.recipes import RECIPES
from gramprune.experiment.run import Run

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Memory = Literal["auto", "whole", "streamed"]

Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bos = Annotated[
    Literal["auto", "always", "never"],
    Field(
        description="Whether every sequence or window begins with the tokenizer's BOS token, which its length counts: "
        "where the tokenizer puts one in front of texts (not before token ids that are given), always, or never."
    ),
]


class Calibration(Section):
    """The text on which the linears' inputs are observed."""

    dataset: str | Annotated[dict[str, Share], Field(min_length=1)] = Field(
        description="`demo`, or a name under `datasets`; or several with weights, such as `{c4: 0.7, chats: 0.3}`, by "
        "which the samples are divided."
    )
    samples: Positive = Field(128, description="Sequences.")
    length: Positive = Field(description="Tokens per sequence; never taken from the model by itself.")
    pack: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether documents are joined before sequences are cut: where they are too short to give enough "
        "sequences one by one, always, or never.",
    )
    bos: Bos = "auto"
    seed: Integer = Field(0, description="Chooses the sequences.")
    accumulate: Literal["float32", "float64"] = Field("float32", description="Dtype in which Gram matrices are summed.")
    gram_memory: AboveZero = Field(
        8,
        description="GiB of Gram matrices that are summed at a time. A block that has more, as one with many experts "
        "may, is passed over as often as is needed; it changes no result.",
    )
    experts: Literal["routed", "all"] = Field(
        "routed", description="The tokens that an expert's Gram matrix is of: those that go to it, or all."
    )
    min_tokens: Positive | None = Field(
        None,
        description="An expert to which fewer tokens go has no Gram matrix of its own: it is pruned by that of all "
        "experts' inputs, or by magnitude where its inputs are its own; by default a quarter of its inputs' number.",
    )

    @model_validator(mode="after")
    def _each_has_samples(self) -> Calibration:
        for name, samples in self.shares.items():
            if not samples:
                raise ValueError(
                    f"the weight of dataset {name!r} gives it none of {self.samples} samples; raise it, or leave it out"
                )
        return self

    @property
    def shares(self) -> dict[str, int]:
        """Samples by dataset, in the order of names: by weight, with what rounding leaves to the largest remainders."""
        weights = {self.dataset: 1.0} if isinstance(self.dataset, str) else dict(sorted(self.dataset.items()))
        exact = {name: self.samples * Fraction(w) / sum(map(Fraction, weights.values())) for name, w in weights.items()}
        shares = {name: floor(part) for name, part in exact.items()}
        for name in sorted(exact, key=lambda name: shares[name] - exact[name])[: self.samples - sum(shares.values())]:
            shares[name] += 1
        return shares


class PerplexityData(Section):
    """A text on which perplexity is measured, given as a name or with these keys."""

    dataset: str = Field(description="`demo_heldout`, or a name under `datasets`.")
    windows: Positive | None = Field(None, description="At most so many windows; by default as for all.")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"dataset": value} if isinstance(value, str) else value


class Perplexity(Section):
    """Perplexity over windows of text."""

    datasets: list[PerplexityData] = Field(min_length=1, description="One column each.")
    length: Annotated[int, Field(gt=1, strict=True), AS_TEXT] = Field(description="Tokens per window.")
    stride: Positive | None = Field(
        None,
        description="Tokens from one window to the next; by default the length, so that windows do not overlap. In "
        "windows that overlap only tokens that the window before did not have are scored.",
    )
    bos: Bos = "auto"
    windows: Positive | None = Field(None, description="At most so many windows per text; all by default.")

    @model_validator(mode="after")
    def _consistent(self) -> Perplexity:
        if self.stride and self.stride > self.length:
            raise ValueError(f"stride is {self.stride}, more than the length {self.length}: tokens would be left out")
        distinct("datasets", [text.dataset for text in self.datasets], "name each once")
        return self


class Tasks(Section):
    """Tasks of lm-eval that one job per model and run evaluates: a task's name, or these keys."""

    name: Name = Field("", description="File in results; by default the tasks' names.", validate_default=False)
    tasks: list[str] = Field(min_length=1, description="Tasks, groups or tags that the installed lm-eval knows.")
    include_path: Place | None = Field(None, description="A folder of task definitions (YAML) of your own.")
    shots: Annotated[int, Field(ge=0, strict=True), AS_TEXT] | None = Field(
        None, description="Examples in the prompt; by default as each task says."
    )
    limit: Positive | None = Field(None, description="Only the first so many items of every task.")
    batch_size: Automatic | None = Field(
        None, description="Items per forward pass; by default as for all, of which auto takes 128 tokens for an item."
    )
    dtype: Dtype | None = Field(None, description="Of forward passes; by default as for all.")
    memory: Memory | None = Field(
        None,
        description="As for perplexity, and by default the same; tasks that generate text need the whole model.",
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        value = {"tasks": [value]} if isinstance(value, str) else value
        if isinstance(value, dict) and "name" not in value and isinstance(value.get("tasks"), list) and value["tasks"]:
            return {"name": slug("-".join(map(str, value["tasks"]))), **value}
        return value


class Evaluation(Section):
    """What is measured of the dense model and of every run."""

    perplexity: Perplexity
    tasks: list[Tasks] = Field([], description="Accuracy on tasks of lm-eval; one job per entry, model and run.")
    memory: Memory = Field(
        "auto",
        description="How much of a model is in memory while it is evaluated: the whole, divided among GPUs where one "
        "is too small; or streamed, one block at a time, with the same figures. `auto` streams what does not fit.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Evaluation:
        distinct("tasks", [tasks.name for tasks in self.tasks], "give each a `name` of its own")
        return self


class Settings(Section):
    """The whole config.yaml."""

    model: list[Model] = Field(min_length=1, description="One model or several.")
    datasets: dict[Name, Dataset] = Field({}, description="Texts by name, besides `demo` and `demo_heldout`.")
    calibration: Calibration
    evaluation: Evaluation
    runs: list[Run] = Field(min_length=1, description="The recipes to compare.")
    exclude_runs: list[str] = Field([], description="Runs of sweeps that are not wanted, as patterns of their names.")
    exclude: list[str] = Field([], description="Linears that stay dense, as patterns such as `*.k_proj`.")
    dtype: Dtype = Field(
        "auto",
        description="Of forward passes; auto is the checkpoint's, or float32 on a CPU without instructions for it.",
    )
    device: str = Field("auto", pattern=DEVICE, description="auto, cpu, cuda or cuda:N.")
    batch_size: Automatic = Field(
        "auto",
        description="Sequences or windows per forward pass; changes only rounding. auto: 1,024 tokens on a CPU, 16,384 "
        "on a GPU.",
    )
    threads: Automatic = Field(
        "auto",
        description="CPU threads per job; changes only rounding. auto: on this machine as many as the jobs that can "
        "run side by side leave free, and 1 in a cluster's jobs.",
    )
    results: Place = Field("results", description="Folder of everything that is made.")
    keep: Literal["all", "gram", "results"] = Field(
        "all",
        description="What stays when no job needs it any more: everything; Gram matrices, masks and weights, but no "
        "hidden states; or only checkpoints, evaluations and tables. What is gone is computed again where a later "
        "change needs it.",
    )

    @field_validator("model", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @field_validator("results")
    @classmethod
    def _plain(cls, value: str) -> str:
        return str(Path(value))  # no `./` in front and no slashes at the end: Snakemake compares paths as texts

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        ours, taken = "a file or folder of ours", outputs.taken()
        for what, names, others, kind in (
            ("model", [model.name for model in self.model], taken["model"], ours),
            ("runs", [run.name for run in self.runs], taken["run"], ours),
            ("datasets", [*self.datasets], EMBEDDED, "an embedded dataset"),
        ):
            distinct(what, names, "give each a `name` of its own")
            for name in names:
                if name.lower() in map(str.lower, others):
                    raise ValueError(f"{what}: the name {name!r} is {kind}; choose another")
        for run in self.runs:
            if run.reconstructed and self.calibration.samples < 2:
                raise ValueError(
                    f"run {run.name!r}: reconstruct holds out sequences, but calibration.samples is 1; give more"
                )
        for where, name in self.dataset_uses:
            if name not in self.all_datasets:
                raise ValueError(f"{where}: there is no dataset {name!r}; {suggest(name, self.all_datasets)}")
        return self

    @property
    def threads_at_least(self) -> int:
        """CPU threads of a job, where nothing is known of those that run beside it."""
        return 1 if self.threads == "auto" else self.threads

    @property
    def all_datasets(self) -> dict[str, Dataset]:
        """The configured datasets and the embedded ones."""
        return {**EMBEDDED, **self.datasets}

    @property
    def dataset_uses(self) -> list[tuple[str, str]]:
        """Setting and dataset, wherever a dataset is named."""
        uses = [("calibration.dataset", name) for name in self.calibration.shares]
        texts = self.evaluation.perplexity.datasets
        return uses + [("evaluation.perplexity.datasets", text.dataset) for text in texts]

    @property
    def inputs(self) -> dict[str, str]:
        """Files and folders of the user's that are read, by their settings."""
        found = {f"model {model.name}": model.location for model in self.model if model.kind == "folder"}
        for name, text in self.datasets.items():
            found |= {f"datasets.{name}.path{f'[{i}]' * (len(text.paths) > 1)}": p for i, p in enumerate(text.paths)}
        for run in self.runs:
            if run.allocation.method == "file":
                found[f"runs.{run.name}.allocation.path"] = run.allocation.path
        for place, entry in enumerate(self.evaluation.tasks):
            found |= {f"evaluation.tasks[{place}].include_path": entry.include_path} if entry.include_path else {}
        return found

    @property
    def token_settings(self) -> dict[str, Any]:
        """All that the calibration tokens depend on, besides model and documents."""
        shares = [
            {"dataset": name, "samples": samples, "separator": self.all_datasets[name].separator}
            for name, samples in self.calibration.shares.items()
        ]
        return {"datasets": shares, **self.calibration.model_dump(include={"length", "pack", "bos", "seed"})}

    @property
    def capture_settings(self) -> dict[str, Any]:
        """All that hidden states and Gram matrices depend on, besides model, linears, tokens and the blocks before."""
        return {"dtype": self.dtype, **self.calibration.model_dump(include={"accumulate", "experts", "min_tokens"})}

    def perplexity_settings(self, dataset: str) -> dict[str, Any]:
        """All that the perplexity on one dataset depends on, besides checkpoint and documents."""
        measure = self.evaluation.perplexity
        text = next(text for text in measure.datasets if text.dataset == dataset)
        return {
            "dataset": dataset,
            "separator": self.all_datasets[dataset].separator,
            "length": measure.length,
            "stride": measure.stride or measure.length,
            "windows": text.windows or measure.windows,
            "bos": measure.bos,
            "dtype": self.dtype,
        }

    @property
    def tasks(self) -> dict[str, Tasks]:
        """The tasks of lm-eval by the names of their entries."""
        return {tasks.name: tasks for tasks in self.evaluation.tasks}

    def memory_of(self, tasks: str | None = None) -> str:
        """How much of a model is in memory for perplexity, or an entry of tasks."""
        return (tasks and self.tasks[tasks].memory) or self.evaluation.memory

    def tasks_settings(self, name: str) -> dict[str, Any]:
        """All that the accuracy on an entry's tasks depends on, besides checkpoint, items and definitions."""
        tasks = self.tasks[name]
        return {**tasks.model_dump(include={"name", "tasks", "shots", "limit"}), "dtype": tasks.dtype or self.dtype}

    def evaluations(self, model: str, run: str) -> list[str]:
        """The files below `results` that a run is measured in, one per text and per entry of tasks."""
        texts = [f"perplexity_{text.dataset}" for text in self.evaluation.perplexity.datasets]
        return [f"{model}/{run}/evaluation/{name}.json" for name in [*texts, *(f"tasks_{name}" for name in self.tasks)]]

    @property
    def tidy_settings(self) -> dict[str, Any]:
        """What may be removed, and when."""
        return {"keep": self.keep, "ends": self.ends}

    @property
    def ends(self) -> dict[str, list[str]]:
        """Of every trail's folder below `results`, the files there after which nothing else of it is needed.

        Not of `dense`, unless only results are kept: with what is shared gone, a new run has all others made anew.
        """
        found: dict[str, list[str]] = {}
        for model in self.model:
            own = {
                f"{model.name}/{run.name}": [
                    f"{model.name}/{run.name}/checkpoint/gramprune.json",
                    *self.evaluations(model.name, run.name),
                ]
                for run in self.runs
            }
            found |= own
            if self.keep == "results":
                found[f"{model.name}/dense"] = [file for files in own.values() for file in files]
        return found

    @property
    def summary_settings(self) -> list[dict[str, Any]]:
        """Model, run and recipe of every row of the summary, the dense model first."""
        rows = []
        for model in self.model:
            rows.append({"model": model.name, "run": "dense"})
            for run in self.runs:
                pattern, granularity = run.pattern_label
                recipe = {
                    "mask": run.mask.method,
                    "refine": run.refine.method,
                    "update": run.update.method,
                    "pattern": pattern,
                    "granularity": granularity,
                    "allocation": run.allocation.method,
                    "propagation": run.propagation,
                    "target": run.target.method,
                    "bias": run.bias,
                    "reconstruct": run.reconstruct.method,
                    "precision": run.precision,
                }
                rows.append({"model": model.name, "run": run.name, **recipe})
        return rows

    @property
    def experiment(self) -> dict[str, Any]:
        """The configuration without what changes no figure, and without defaults; `load` takes it again."""
        elsewhere: dict[str, Any] = dict.fromkeys(("device", "batch_size", "threads", "results", "keep"), True)
        elsewhere["evaluation"] = {"memory": True, "tasks": {"__all__": {"memory"}}}
        found = self.model_dump(exclude=elsewhere, exclude_defaults=True, mode="json")
        for run, dumped in zip(self.runs, found["runs"], strict=True):  # a default may stand before a recipe's value
            dumped |= run.model_dump(include=set(RECIPES.get(run.recipe or "", ())), mode="json")
        return found


def load(config: Any, everything: bool = False) -> Settings:
    """The settings of a parsed config.yaml, sweeps as the runs that they stand for.

    Raises GrampruneError with one sentence about the first mistake, or with a line for each, if `everything` is wanted.
    """
    config, places = _without_sweeps(config)
    try:
        return Settings.model_validate(config)
    except ValidationError as error:
        found = mistakes.causes(error.errors(), Settings)[: None if everything else 1]
        said = dict.fromkeys(mistakes.sentence(_where_written(each, places), Settings) for each in found)
        raise GrampruneError("\n".join(said)) from error


def model_of(source: str) -> Model:
    """A model by its source alone. Raises GrampruneError for what cannot be one."""
    try:
        return Model.model_validate(source)
    except ValidationError as error:
        mistake: Any = error.errors()[0]
        raise GrampruneError(mistakes.sentence({**mistake, "loc": ("model",)}, Settings)) from error


def _without_sweeps(config: Any) -> tuple[Any, list[int]]:
    """The configuration with a run for each that its sweeps stand for, and where in it each run is written."""
    runs = config.get("runs") if isinstance(config, dict) else None
    if not isinstance(runs, list):
        return config, []
    found, places = sweep.expanded(runs, _impossible)
    left = [not out for out in sweep.excluded(found, config.get("exclude_runs"))]
    config = {**config, "runs": list(compress(found, left)), "exclude_runs": []}
    if found and not config["runs"]:
        raise GrampruneError("config: exclude_runs leaves no run.")
    return config, list(compress(places, left))


def _impossible(run: dict[str, Any]) -> str:
    """Why the values of a run cannot go together; nothing if they can, or one is wrong by itself."""
    try:
        Run.model_validate(run)
    except ValidationError as error:
        if all(not mistake["loc"] for mistake in error.errors()):
            return str(error.errors()[0]["ctx"]["error"])
    return ""


def _where_written(mistake: Any, places: list[int]) -> dict[str, Any]:
    """A mistake in a run of a sweep, at the place where the user has written it."""
    first, *rest = [*mistake["loc"], None, None][:2]
    if first == "runs" and isinstance(rest[0], int) and rest[0] < len(places):
        return {**mistake, "loc": ("runs", places[rest[0]], *mistake["loc"][2:])}
    return mistake
