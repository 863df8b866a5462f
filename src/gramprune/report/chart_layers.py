"""Charts of layer errors: which linears hurt most, where, and what the stages made of them."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import altair as alt
import numpy as np

from gramprune.report.drawing import PANELS, WIDTH, best_runs, in_panels, panel_name, panels, short
from gramprune.report.hurt import hurt
from gramprune.report.read import STAGES, Results

APART = 8  # blocks: of more of them, swaps are drawn as their median
WORST = 8  # linears


def worst(results: list[Results]) -> alt.TopLevelMixin | None:
    """The linears with the largest relative error at the end (the share of a linear's output, in squares, that the
    pruned one does not give) in the best run of every pattern. Absolute errors are not compared: outputs of
    different linears have different scales. A linear that stands out may be worth a lower sparsity of its own."""
    values, order = [], []
    for one, model, run in best_runs(results)[:PANELS]:
        found = hurt(one.errors_of(model, run))
        if found is None:
            continue
        order.append(panel_name(results, one, model, run))
        for place, row in enumerate(found.worst[:WORST]):
            linear = f"{row['block']} {row['linear']}"
            values.append({"panel": order[-1], "place": place, "linear": linear, "error": short(row["end"])})
    if not values:
        return None
    base = alt.Chart(alt.Data(values=values)).encode(y=alt.Y("place:O", axis=None, title=None))
    bars = base.mark_bar(color="#d97706", opacity=0.5).encode(
        x=alt.X("error:Q", title="relative error", axis=alt.Axis(format="~%", tickCount=4)),
        tooltip=["panel:N", "linear:N", alt.Tooltip("error:Q", format=".4f")],
    )
    names = base.mark_text(align="left", fontSize=11, x=4, limit=225).encode(text="linear:N")
    return in_panels(alt.layer(bars, names).properties(width=230, height=alt.Step(18)), order)


def _errors(results: list[Results]) -> list[dict[str, Any]]:
    """A record per run, block and linear; all experts of a linear are one, with the geometric mean of their errors."""
    records = []
    for one in results:
        for model in one.layouts:
            for run in one.settings.runs:
                alike: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
                for row in one.errors_of(model, run):
                    alike[row["block"], one.linear_of(model, row["linear"])].append(row)
                head = {"model": _place(results, one, model), "run": run.name}
                for (block, linear), rows in alike.items():
                    stages = {name for row in rows for name in row} - {"block", "linear"}
                    means = {name: _mean([row.get(name) for row in rows]) for name in stages}
                    records.append({**head, "block": block, "linear": linear, **means})
    return records


def _mean(errors: list[float | None]) -> float:
    """The geometric mean of those above zero; 0 if there are none."""
    if len(errors) == 1:
        return errors[0] or 0.0
    logs = [math.log(error) for error in errors if error]
    return math.exp(sum(logs) / len(logs)) if logs else 0.0


def _place(results: list[Results], one: Results, model: str) -> str:
    """A model's name, with its folder where there are several."""
    return model if len(results) == 1 else f"{one.folder}: {model}"


def _linears(layout: dict[str, Any]) -> list[str]:
    """The names of all linears, in the order in which the model has them."""
    return list(dict.fromkeys(name for block in layout["blocks"] for name in block["linears"]))


def _heat_map(
    results: list[Results], records: list[dict], field: str, title: str, scheme: str, scale: dict[str, Any]
) -> alt.TopLevelMixin | None:
    """A cell per block and linear, one run at a time, which is chosen; at first the best of the first pattern."""
    names = {(id(one), model): _place(results, one, model) for one in results for model in one.layouts}
    order = {names[id(one), model]: _linears(one.layouts[model]) for one in results for model in one.layouts}
    best: dict[str, list[str]] = defaultdict(list)
    for one, model, run in best_runs(results):
        best[names[id(one), model]].append(run.name)
    charts, legend = [], alt.Legend(format=".2~g")
    for place, model in enumerate(dict.fromkeys(record["model"] for record in records)):
        found = [record for record in records if record["model"] == model and record.get(field)]
        if not found:
            continue
        runs = list(dict.fromkeys(record["run"] for record in found))
        blocks = len({record["block"] for record in found})
        rows: dict[tuple[str, str], dict[str, Any]] = {}  # blocks as lists: a quarter of the size in the page
        for record in found:
            head = {"run": record["run"], "linear": record["linear"], "block": [], field: []}
            row = rows.setdefault((record["run"], record["linear"]), head)
            row["block"].append(record["block"])
            row[field].append(short(record[field]))
        begin = next((name for name in best[model] if name in runs), runs[-1])
        choice = alt.param(
            f"run_{field}_{place}", value=begin, bind=alt.binding_select(options=runs, name=f"{model}: run ")
        )
        charts.append(
            alt.Chart(
                alt.Data(values=list(rows.values())),
                width=min(WIDTH - 160, max(120, 26 * blocks)),
                height=alt.Step(22),
                title=model,
            )
            .mark_rect()
            .encode(
                x=alt.X("block:O", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
                y=alt.Y("linear:N", sort=order[model], title=None, axis=alt.Axis(labelLimit=200)),
                color=alt.Color(f"{field}:Q", title=title, scale=alt.Scale(scheme=scheme, **scale), legend=legend),
                tooltip=["run:N", "block:O", "linear:N", alt.Tooltip(f"{field}:Q", format=".4g")],
            )
            .add_params(choice)
            .transform_filter(f"datum.run == {choice.name}")
            .transform_flatten(["block", field])
        )
    return alt.vconcat(*charts).resolve_scale(color="independent") if charts else None


def layers(results: list[Results]) -> alt.TopLevelMixin | None:
    """Relative layer error of every linear at the end: the share of its output, in squares, that the pruned linear does
    not give; of experts the geometric mean. A color means the same in all runs."""
    records = _errors(results)
    ends = [record["end"] for record in records if record.get("end")]
    domain = {"domain": [min(ends), max(ends)]} if ends and min(ends) < max(ends) else {}
    return _heat_map(results, records, "end", "relative error", "viridis", {"type": "log", **domain})


def reduction(results: list[Results]) -> alt.TopLevelMixin | None:
    """What refinement and update made of the first mask's error: 0.1 is a tenth of it, above 1 is worse."""
    changed = [r for r in _errors(results) if r.get("start") and r["end"] not in (0, r["start"])]
    records = [{**r, "left": r["end"] / r["start"]} for r in changed]
    if not records:
        return None
    farthest = max(max(r["left"], 1 / r["left"]) for r in records)  # so that white is 1: neither better nor worse
    scale = {"type": "log", "reverse": True, "domain": [1 / farthest, farthest]}
    return _heat_map(results, records, "left", "error left", "redblue", scale)


def depth(results: list[Results]) -> alt.TopLevelMixin | None:
    """Does error pile up? Relative layer error along the model, geometric mean over a block's linears, after each
    stage. Of more than 12 runs, the best of every model and pattern."""
    values, order = [], []
    for one, model, run in panels(results):
        sums: dict[tuple[int, str], list[float]] = defaultdict(list)
        for row in one.errors_of(model, run):
            for stage in ("mask", "refine", "update"):
                if row.get(stage):
                    sums[row["block"], stage].append(math.log(row[stage]))
        order.append(panel_name(results, one, model, run))
        for (block, stage), logs in sums.items():
            error = short(math.exp(sum(logs) / len(logs)))
            values.append({"panel": order[-1], "block": block, "stage": stage, "error": error})
    if not values:
        return None
    colors = alt.Scale(domain=["mask", "refine", "update"], range=[STAGES[s] for s in ("mask", "refine", "update")])
    blocks = len({value["block"] for value in values})
    chart = alt.Chart(alt.Data(values=values), width=190, height=120).mark_line(point=alt.OverlayMarkDef(size=12))
    chart = chart.encode(
        x=alt.X("block:Q", axis=alt.Axis(tickMinStep=1, tickCount=min(blocks, 6), format="d")),
        y=alt.Y("error:Q", title="relative error", scale=alt.Scale(type="log"), axis=alt.Axis(tickCount=4)),
        color=alt.Color("stage:N", title="after", scale=colors),
        tooltip=["panel:N", "block:O", "stage:N", alt.Tooltip("error:Q", format=".4g")],
    )
    return in_panels(chart, order)


def reconstruction(results: list[Results]) -> alt.TopLevelMixin | None:
    """What the training of whole blocks has won: how far a block's output was from what it aimed at, per token and
    relative to that, before and after, on sequences that were not trained on. Of more than 12 runs, the best of every
    model and pattern that is reconstructed."""
    values, order = [], []
    for one, model, run in panels(results, lambda run: run.reconstructed):
        order.append(panel_name(results, one, model, run))
        of_block = {row["block"]: row for stage, row in one.stages_of(model, run) if stage == "reconstruct"}
        for block, row in of_block.items():
            ends = {"before": row["curve"][0], "after": row["curve"][int(row["best"])]}
            head = {"panel": order[-1], "block": block, "epoch": row["best"]}
            values += [{**head, "training": when, "loss": short(loss)} for when, loss in ends.items() if loss]
    if not values:
        return None
    colors = alt.Scale(domain=["before", "after"], range=[STAGES["update"], STAGES["reconstruct"]])
    blocks = len({value["block"] for value in values})
    chart = alt.Chart(alt.Data(values=values), width=190, height=120).mark_line(point=alt.OverlayMarkDef(size=12))
    chart = chart.encode(
        x=alt.X("block:Q", axis=alt.Axis(tickMinStep=1, tickCount=min(blocks, 6), format="d")),
        y=alt.Y("loss:Q", title="loss held out", scale=alt.Scale(type="log"), axis=alt.Axis(tickCount=4)),
        color=alt.Color("training:N", scale=colors),
        tooltip=["panel:N", "block:O", "training:N", alt.Tooltip("loss:Q", format=".4g"), "epoch:Q"],
    )
    return in_panels(chart, order)


def zeros(results: list[Results]) -> alt.TopLevelMixin | None:
    """Where are the zeros? The sparsity of every block along the model, as a line, and of its linears, as dots: what an
    allocation or a sparsity by linear comes to, counted in what was made. Runs in which all linears have the same are
    left out, and linears that stay dense. Of more than 12 runs, the best of every model and pattern."""
    values, order = [], []
    for one, model, run in panels(results, lambda run: run.allocated or isinstance(run.sparsity, dict)):
        last = {
            (row["block"], row["linear"]): row
            for stage, row in one.stages_of(model, run)
            if row.get("sparsity") is not None
        }
        sizes: dict[int, list[tuple[float, int]]] = defaultdict(list)
        order.append(panel_name(results, one, model, run))
        for (block, linear), row in last.items():
            sizes[block].append((row["sparsity"], row["rows"] * row["columns"]))
            values.append({"panel": order[-1], "block": block, "linear": linear, "sparsity": short(row["sparsity"])})
        for block, found in sizes.items():
            share = sum(sparsity * size for sparsity, size in found) / sum(size for _, size in found)
            values.append({"panel": order[-1], "block": block, "linear": "whole block", "sparsity": short(share)})
    if not values:
        return None
    blocks = len({value["block"] for value in values})
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("block:Q", axis=alt.Axis(tickMinStep=1, tickCount=min(blocks, 6), format="d")),
        y=alt.Y("sparsity:Q", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4, format="~%")),
        tooltip=["panel:N", "block:O", "linear:N", alt.Tooltip("sparsity:Q", format=".2%")],
    )
    whole = base.mark_line(point=alt.OverlayMarkDef(size=12)).transform_filter("datum.linear == 'whole block'")
    each = base.mark_point(size=14, opacity=0.5, color=STAGES["mask"]).transform_filter("datum.linear != 'whole block'")
    return in_panels(alt.layer(each, whole).properties(width=190, height=120), order)


def swaps(results: list[Results]) -> alt.TopLevelMixin | None:
    """Convergence of swaps: layer error over steps, which are swaps per row where each row has its own count, relative
    to the mask they began with; a line per linear, the median of its experts, and of blocks where there are more than
    8. Of more than 12 runs, the best of every model and pattern that swaps."""
    values, order = [], []
    for one, model, run in panels(results, lambda run: run.refined):
        curves: dict[tuple[str, int | str], list[np.ndarray]] = defaultdict(list)
        many = len(one.layouts[model]["blocks"]) > APART
        for stage, row in one.stages_of(model, run):
            curve = row.get("curve") if stage == "refine" else None
            if curve and curve[0]:
                linear = one.linear_of(model, row["linear"])
                curves[linear, "all" if many else row["block"]].append(np.array(curve) / curve[0])
        name = panel_name(results, one, model, run)
        order += [name] if curves else []
        for (linear, block), found in curves.items():
            for count, error in _median(found):
                head = {"panel": name, "block": block, "linear": linear}
                values.append({**head, "swaps": count, "error": round(error, 4)})
    if not values:
        return None
    chart = alt.Chart(alt.Data(values=values), width=190, height=150).mark_line(opacity=0.7)
    chart = chart.encode(
        x=alt.X("swaps:Q", title="steps (swaps per row)", axis=alt.Axis(tickCount=5)),
        y=alt.Y("error:Q", title="error left", scale=alt.Scale(zero=False)),
        color="linear:N",
        detail="block:N",
        tooltip=["panel:N", "block:N", "linear:N", "swaps:Q", "error:Q"],
    )
    return in_panels(chart, order)


def _median(curves: list[np.ndarray]) -> list[tuple[int, float]]:
    """Steps and the median of curves there, at some forty of them; a curve that has ended stays where it was."""
    length = max(len(curve) for curve in curves)
    counts = [*range(0, length - 1, max(1, length // 40)), length - 1]
    return [(count, float(np.median([curve[min(count, len(curve) - 1)] for curve in curves]))) for count in counts]
