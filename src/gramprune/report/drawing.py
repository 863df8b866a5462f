"""What the report's charts share: sizes, scales, and which runs they show where not all can be."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import altair as alt

from gramprune.experiment.run import Run
from gramprune.report.read import Results
from gramprune.report.results import SHOWN

alt.data_transformers.disable_max_rows()
WIDTH = 720
ALL = 12  # runs: panels of more of them are those of the best
PANELS = 24
COLORS = [  # Tableau's twenty, the strong ones first
    "#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#439894", "#9d755d", "#d6a5c9", "#b79a20", "#79706e",
    "#9ecae9", "#ffbf79", "#88d27a", "#ff9d98", "#ff9da6", "#83bcb6", "#d8b5a5", "#d67195", "#f2cf5b", "#bab0ac",
]  # fmt: skip


def short(value: Any) -> Any:
    """A figure with four digits, which is more than a picture shows."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def scale(kind: str) -> alt.Scale:
    """An axis that shows the figures and no more."""
    return alt.Scale(type=kind, nice=False, padding=16, **({"zero": False} if kind == "linear" else {}))


def kind_of(pattern: str) -> str:
    """Whether a pattern is N:M, one fraction for all linears, or one of several."""
    if re.fullmatch(r"\d+:\d+", pattern):
        return "N:M"
    return "one fraction" if re.fullmatch(r"[0-9.]+", pattern) else "several"


def measure_of(rows: list[dict[str, Any]]) -> str | None:
    """The column by which runs are ranked: the first perplexity, or else the first accuracy."""
    names = [name for row in rows for name in row if name.startswith(SHOWN) and "stderr" not in name]
    return min(names, key=lambda name: not name.startswith("perplexity_"), default=None)


def worth(row: dict[str, Any], name: str) -> float:
    """A key by which the best row of a column comes first."""
    value = row.get(name)
    if value is None or math.isnan(value):
        return math.inf
    return value if name.startswith("perplexity_") else -value


def best_runs(results: list[Results], of: Callable[[Run], bool] = lambda run: True) -> list[tuple[Results, str, Run]]:
    """The best run of every folder, model and pattern, among those of a kind."""
    found = []
    for one in results:
        name, runs = measure_of(one.rows), {run.name: run for run in one.settings.runs}
        groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for row in one.rows:
            if row["run"] != "dense" and of(runs[row["run"]]):
                groups[row["model"], row["pattern"]].append(row)
        for (model, _), rows in groups.items():
            best = min(rows, key=lambda row: worth(row, name)) if name else rows[0]
            found.append((one, model, runs[best["run"]]))
    return found


def panels(results: list[Results], of: Callable[[Run], bool] = lambda run: True) -> list[tuple[Results, str, Run]]:
    """The runs that have a panel each: all of a kind, or the best of every model and pattern if those are many."""
    every = [(one, model, run) for one in results for model in one.layouts for run in one.settings.runs if of(run)]
    return every if len(every) <= ALL else best_runs(results, of)[:PANELS]


def panel_name(results: list[Results], one: Results, model: str, run: Run) -> str:
    """A run's name, with model and folder where there are several."""
    several = len({model for each in results for model in each.layouts}) > 1
    folder = f"{one.folder}: " if len(results) > 1 else ""
    return folder + (f"{model}: {run.name}" if several else run.name)


def in_panels(chart: alt.Chart, order: list[str], columns: int = 3) -> alt.FacetChart:
    """The chart once per value of `panel`."""
    head = alt.Header(labelLimit=240, labelFontSize=11)
    return chart.facet(facet=alt.Facet("panel:N", sort=order, title=None, header=head), columns=columns)
