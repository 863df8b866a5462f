"""A folder of results, as a report or a status needs it: settings, tables, evaluations, and what every job took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError
from gramprune.experiment import pipeline, settings
from gramprune.experiment.measured import Measured, times
from gramprune.experiment.pipeline import Job, Key
from gramprune.experiment.resources import Need
from gramprune.experiment.settings import Run, Settings
from gramprune.storage import files

STAGES = {  # in the order in which they are drawn
    "fetch_model": "#9ca3af",
    "fetch_data": "#9ca3af",
    "fetch_tasks": "#9ca3af",
    "calibrate": "#6b7280",
    "capture": "#2563eb",
    "mask": "#d97706",
    "refine": "#dc2626",
    "update": "#059669",
    "assemble": "#7c3aed",
    "perplexity": "#0891b2",
    "tasks": "#0e7490",
    "summary": "#374151",
    "report": "#111827",
}


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
    def evaluations(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """What was measured, by model and run, in the order of the settings."""
        names = [f"perplexity_{text.dataset}" for text in self.settings.evaluation.perplexity.datasets]
        names += [f"tasks_{name}" for name in self.settings.tasks]
        return {
            (row["model"], row["run"]): [
                files.read_json(self.folder / row["model"] / row["run"] / "evaluation" / f"{name}.json")
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
        for block in range(len(self.layouts[model]["blocks"])):
            trail, recipe = pipeline.trail_of(run, block), pipeline.recipe_of(run, block)
            keys = [(model, trail, "capture", block, None, None)]
            if not run.joint:
                keys.append((model, trail, "mask", block, recipe.mask_slug, None))
            if run.refined:
                keys.append((model, trail, "refine", block, recipe.mask_slug, recipe.refine_slug))
            if run.updated:
                keys.append((model, run.name, "update", block, None, None))
            for key in keys:
                for row in self._rows_of.get(key, []):
                    yield key[2], row

    def errors_of(self, model: str, run: Run) -> list[dict[str, Any]]:
        """A row per linear: relative error of the first mask (`start`), after each stage, and at the end."""
        found: dict[tuple[int, str], dict[str, Any]] = {}
        for stage, row in self.stages_of(model, run):
            if stage == "capture" or not row["error"]:
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
        needed = [key for key in pipeline.needed(self.jobs, model, run) if not key[0].startswith("fetch")]
        if any(key not in self.times for key in needed):
            return None
        taken = {key: self.times[key] for key in needed}
        alone = {
            key: Job(Need(0, start=taken[key].seconds), tuple(p for p in self.jobs[key].after if p in taken))
            for key in needed
        }
        wall, _ = pipeline.longest_chain(alone, lambda need: need.start)
        on_gpu = any("gpu" in evaluation["hardware"] for evaluation in self.evaluations[model, run])
        seconds = {
            "wall": wall,
            "hours": sum(each.seconds for each in taken.values()),
            "cpu": sum(each.cpu_seconds or each.seconds for each in taken.values()),
            "gpu": sum(taken[key].seconds for key in needed if self.jobs[key].need.accelerated) if on_gpu else 0.0,
        }
        return {name: value / 3600 for name, value in seconds.items()}


def read(folder: Path) -> Results:
    """A folder of results. Raises GrampruneError if there are none."""
    import pyarrow.parquet as parquet

    experiment = folder / "experiment.json"
    if not experiment.exists():
        raise GrampruneError(
            f"{folder} holds no results ({experiment.name} is missing): run snakemake to its end first."
        )
    made = files.read_json(experiment)
    known = settings.load(made["config"])
    return Results(
        folder=folder,
        settings=known,
        versions=made["versions"],
        rows=parquet.read_table(folder / "summary.parquet").to_pylist(),
        layers=parquet.read_table(folder / "layers.parquet").to_pylist(),
        layouts={model.name: files.read_json(folder / model.name / "layout.json") for model in known.model},
    )
