"""A folder of results, as a report or a status needs it: settings, tables, evaluations, and what every job took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gramprune.errors import GrampruneError, shorter
from gramprune.experiment import pipeline, settings
from gramprune.experiment.measured import Measured, times
from gramprune.experiment.needs import Need
from gramprune.experiment.pipeline import Job, Key
from gramprune.experiment.run import Run
from gramprune.experiment.settings import Settings
from gramprune.report import results as tables
from gramprune.report.results import AGAIN
from gramprune.storage import files

STAGES = {  # in the order in which they are drawn
    "fetch_model": "#9ca3af",
    "fetch_data": "#9ca3af",
    "fetch_tasks": "#9ca3af",
    "calibrate": "#6b7280",
    "capture": "#2563eb",
    "allocate": "#be185d",
    "mask": "#d97706",
    "refine": "#dc2626",
    "update": "#059669",
    "reconstruct": "#be185d",
    "assemble": "#7c3aed",
    "perplexity": "#0891b2",
    "tasks": "#0e7490",
    "summary": "#475569",
    "report": "#64748b",
}


class Source(BaseModel):
    """A model, as an evaluation knows it."""

    source: str
    fingerprint: str
    revision: str | None = None


class Text(BaseModel):
    """A text, as an evaluation knows it."""

    settings: dict[str, Any]
    documents: int
    sha256: str
    revision: str | None = None


class Task(BaseModel):
    """A task of lm-eval, as an evaluation knows it."""

    version: float | str
    items: int
    sha256: str


class Machine(BaseModel):
    """What an evaluation ran on."""

    cpu: str
    cores: int | None
    gpu: str | None = None


class Evaluation(BaseModel):
    """What the page says of an evaluation: where its figures are from."""

    model: Source
    versions: dict[str, str]
    hardware: Machine
    dtype: str
    dataset: str = ""
    data: Text | None = None
    lm_eval: str = ""
    tasks: dict[str, Task] = {}


class Experiment(BaseModel):
    """What `experiment.json` says."""

    config: dict[str, Any]
    versions: dict[str, str]


class Matrix(BaseModel):
    """A pruned matrix, as a checkpoint's recipe knows it."""

    kept_zeros: int


class Recipe(BaseModel):
    """What the page says of a checkpoint."""

    matrices: list[Matrix]


Content = TypeVar("Content", bound=BaseModel)


def _understood(kind: type[Content], path: Path) -> Content:
    """What stands in a JSON file. Raises GrampruneError, naming it, if it is missing or holds something else."""
    content = files.read_json(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        found = error.errors()[0]
        place = ".".join(map(str, found["loc"])) or "it"
        expected = found["msg"].removeprefix("Input should be ")
        raise GrampruneError(f"{path}: {place} is {shorter(found['input'])}; expected: {expected}; {AGAIN}.") from error


@dataclass(frozen=True)
class Results:
    """One folder of results."""

    folder: Path
    settings: Settings
    versions: dict[str, str]  # of what made the tables
    rows: list[dict[str, Any]]  # the summary
    layers: list[dict[str, Any]]  # every linear and stage
    layouts: dict[str, dict[str, Any]]

    @cached_property
    def jobs(self) -> dict[Key, Job]:
        """All jobs of the experiment."""
        return pipeline.jobs(self.settings, self.layouts)

    @cached_property
    def times(self) -> dict[Key, Measured]:
        """What the jobs took that were measured."""
        return times(self.folder, self.jobs)

    @cached_property
    def evaluations(self) -> dict[tuple[str, str], list[Evaluation]]:
        """What was measured, by model and run, in the order of the settings."""
        names = [f"perplexity_{text.dataset}" for text in self.settings.evaluation.perplexity.datasets]
        names += [f"tasks_{name}" for name in self.settings.tasks]
        return {
            (row["model"], row["run"]): [
                _understood(Evaluation, self.folder / row["model"] / row["run"] / "evaluation" / f"{name}.json")
                for name in names
            ]
            for row in self.rows
        }

    @cached_property
    def _rows_of(self) -> dict[tuple, list[dict[str, Any]]]:
        found: dict[tuple, list[dict[str, Any]]] = {}
        for row in self.layers:
            key = (row["model"], row["run"], row["stage"], row["block"], row.get("mask"), row.get("refine"))
            found.setdefault(key, []).append(row)
        return found

    def stages_of(self, model: str, run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
        """Stage and what it measured of every linear that a run's result depends on, shared or its own."""
        layout = self.layouts[model]
        for block in range(len(layout["blocks"])):
            trail = pipeline.trail_of(run, block)
            recipe = pipeline.recipe_of(run, block, layout, self.settings.exclude)
            keys: list[tuple] = [(model, trail, "capture", block, None, None)]
            if not run.joint:
                keys.append((model, trail, "mask", block, recipe.mask_slug, None))
            if run.refined:
                keys.append((model, trail, "refine", block, recipe.mask_slug, recipe.refine_slug))
            if run.updated:
                keys.append((model, run.name, "update", block, None, None))
            if run.reconstructed:
                keys.append((model, run.name, "reconstruct", block, None, None))
            for key in keys:
                for row in self._rows_of.get(key, []):
                    yield key[2], row
            shared = pipeline.shared_of(layout, block, self.settings.exclude) if trail != "dense" else {}
            for row in self._rows_of.get((model, "dense", "capture", block, None, None), []) if shared else ():
                if row["linear"] in shared:
                    yield "capture", row

    @cached_property
    def _errors(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        return {}

    def linear_of(self, model: str, name: str) -> str:
        """The linear of the layout that a name stands for, which may be that of one of its experts."""
        return name if name in self._linears[model] else name.rpartition(".")[0]

    @cached_property
    def _linears(self) -> dict[str, set[str]]:
        return {m: {name for block in of["blocks"] for name in block["linears"]} for m, of in self.layouts.items()}

    def errors_of(self, model: str, run: Run) -> list[dict[str, Any]]:
        """A row per linear: relative error of the first mask (`start`), after each stage, and at the end."""
        if (model, run.name) not in self._errors:
            self._errors[model, run.name] = self._found_errors(model, run)
        return self._errors[model, run.name]

    def _found_errors(self, model: str, run: Run) -> list[dict[str, Any]]:
        found: dict[tuple[int, str], dict[str, Any]] = {}
        for stage, row in self.stages_of(model, run):
            if stage in ("capture", "reconstruct") or not row["error"]:
                continue
            place = found.setdefault((row["block"], row["linear"]), {"block": row["block"], "linear": row["linear"]})
            if "start" not in place:
                before = row["error_before"] if stage == "update" else row["error"]
                place["start"] = place["mask"] = before * row["relative_error"] / row["error"]
            place[stage] = place["end"] = row["relative_error"]
        return list(found.values())

    def cost_of(self, model: str, run: str) -> dict[str, float] | None:
        """Hours of all jobs that a run needs, those that it shares counted in full; None where one was not measured.

        `hours` one after the other; `wall` if every job had a machine at once; `cpu` and `gpu` of them.
        """
        if (model, run) not in self._costs:
            self._costs[model, run] = self._found_cost(model, run)
        return self._costs[model, run]

    @cached_property
    def _costs(self) -> dict[tuple[str, str], dict[str, float] | None]:
        return {}

    def _found_cost(self, model: str, run: str) -> dict[str, float] | None:
        needed = [key for key in pipeline.needed(self.jobs, model, run) if not key[0].startswith("fetch")]
        if any(key not in self.times for key in needed):
            return None
        taken = {key: self.times[key] for key in needed}
        alone = {
            key: Job(Need(0, start=taken[key].seconds), tuple(p for p in self.jobs[key].after if p in taken))
            for key in needed
        }
        wall, _ = pipeline.longest_chain(alone, lambda need: need.start)
        on_gpu = any(evaluation.hardware.gpu for evaluation in self.evaluations[model, run])
        seconds = {
            "wall": wall,
            "hours": sum(each.seconds for each in taken.values()),
            "cpu": sum(each.cpu_seconds or each.seconds for each in taken.values()),
            "gpu": sum(taken[key].seconds for key in needed if self.jobs[key].need.accelerated) if on_gpu else 0.0,
        }
        return {name: value / 3600 for name, value in seconds.items()}

    def kept_zeros(self, model: str, run: str) -> int | None:
        """How many weights of a checkpoint are zero although the mask keeps them; None where there is no checkpoint."""
        path = self.folder / model / run / "checkpoint" / "gramprune.json"
        return sum(m.kept_zeros for m in _understood(Recipe, path).matrices) if path.exists() else None


def read(folder: Path) -> Results:
    """A folder of results. Raises GrampruneError, naming the file, if there are none or one is damaged."""
    experiment = folder / "experiment.json"
    if not experiment.exists():
        raise GrampruneError(
            f"{folder} holds no results ({experiment.name} is missing): run snakemake to its end first."
        )
    made = _understood(Experiment, experiment)
    try:
        known = settings.load(made.config)
    except GrampruneError as error:
        raise GrampruneError(f"{experiment}: {error}") from error
    rows = tables.read_summary(folder / "summary.parquet")
    expected = [(row["model"], row["run"]) for row in known.summary_settings]
    if [(row["model"], row["run"]) for row in rows] != expected:
        raise GrampruneError(
            f"{folder / 'summary.parquet'} has other rows than the runs of {experiment}: run snakemake to its end."
        )
    layouts = {model.name: _layout(folder / model.name / "layout.json", model.name, known) for model in known.model}
    layers = tables.read_layers(folder / "layers.parquet")
    return Results(folder, known, made.versions, rows, layers, layouts)


def _layout(path: Path, model: str, known: Settings) -> dict[str, Any]:
    """A model's layout, from which its jobs can be told. Raises GrampruneError if they cannot."""
    found = files.read_json(path)
    try:
        pipeline.jobs(known, {model: found})
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise GrampruneError(f"{path} does not describe a model: run `snakemake -n` to have it made again.") from error
    return found
