"""The report's pictures as Vega-Lite charts: interactive in the page, SVG for papers."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import altair as alt

from gramprune.experiment.pipeline import Key
from gramprune.report.read import STAGES, Results

alt.data_transformers.disable_max_rows()
WIDTH = 720
DRAWN = 2000  # jobs: more of them are drawn without the lines between them


def method(row: dict[str, Any]) -> str:
    """A recipe's mask, refinement and update in a few words."""
    if row["run"] == "dense":
        return "-"
    parts = [row["mask"], row["refine"], row["update"]]
    text = " + ".join(part for part in parts if part not in ("none", "joint")) + " joint" * (row["update"] == "joint")
    return text + (", dense target" if row["target"] == "dense" else "")


def all_charts(results: list[Results]) -> dict[str, tuple[str, alt.TopLevelMixin]]:
    """By name: a caption, and the chart. Those for which there is nothing to draw are left out."""
    makers = {
        "perplexity": perplexity,
        "sparsity": sparsity,
        "price": price,
        "accuracy": accuracy,
        "layers": layers,
        "reduction": reduction,
        "depth": depth,
        "swaps": swaps,
        "cost": cost,
        "rules": rules,
        "jobs": jobs,
    }
    found = {}
    for name, make in makers.items():
        chart = make(results)
        if chart is not None:
            caption = " ".join(make.__doc__.split())
            found[name] = (caption, chart.configure_view(strokeWidth=0).configure_axis(labelFontSize=11))
    return found


def _measured(results: list[Results], prefix: str) -> list[dict[str, Any]]:
    """One record per row of the summaries and column that begins so."""
    records = []
    for one in results:
        for row in one.rows:
            for name, value in row.items():
                if name.startswith(prefix) and "stderr" not in name and value is not None:
                    what = name.removeprefix(prefix)
                    record = {
                        "place": f"{row['model']}" if len(results) == 1 else f"{one.folder}: {row['model']}",
                        "model": row["model"],
                        "run": row["run"],
                        "method": method(row),
                        "pattern": row["pattern"] or "dense",
                        "sparsity": row["sparsity"],
                        "kind": "N:M" if ":" in (row["pattern"] or "") else "unstructured",
                        "what": what,
                        "value": value,
                    }
                    if prefix == "perplexity_":
                        record |= {"low": row.get(f"delta_low_{what}"), "high": row.get(f"delta_high_{what}")}
                        record["minutes"] = 60 * (one.cost_of(row["model"], row["run"]) or {}).get("hours", 0)
                    else:
                        record["stderr"] = row.get(f"{prefix}stderr_{what}")
                    records.append(record)
    return records


def _scale(kind: str) -> alt.Scale:
    """An axis that shows the figures and no more."""
    return alt.Scale(type=kind, nice=False, padding=16, **({"zero": False} if kind == "linear" else {}))


def _per_run(records: list[dict[str, Any]], title: str, scale: str, error: str | None) -> alt.TopLevelMixin | None:
    """A point per run, in the configuration's order, and the dense model as a line; a panel per model and column."""
    panels = defaultdict(list)
    for record in records:
        panels[record["place"], record["what"]].append(record)
    charts = []
    for (place, what), found in panels.items():
        dense = [record for record in found if record["run"] == "dense"]
        runs = [record for record in found if record["run"] != "dense"]
        axis = alt.X("value:Q", title=f"{title} {what}", scale=_scale(scale))
        order = alt.Y("run:N", sort=[record["run"] for record in runs], title=None, axis=alt.Axis(labelLimit=260))
        shown = ["run:N", "method:N", "pattern:N", alt.Tooltip("value:Q", format=".4f")]
        base = alt.Chart(alt.Data(values=runs), width=WIDTH - 160, height=alt.Step(22), title=place)
        if error == "interval" and dense:
            for record in runs:
                record["least"] = dense[0]["value"] + record["low"] if record["low"] is not None else None
                record["most"] = dense[0]["value"] + record["high"] if record["high"] is not None else None
            shown += [alt.Tooltip("low:Q", title="over dense, from"), alt.Tooltip("high:Q", title="to")]
        elif error == "stderr":
            for record in runs:
                record["least"] = record["value"] - 1.96 * (record["stderr"] or 0)
                record["most"] = record["value"] + 1.96 * (record["stderr"] or 0)
            shown.append(alt.Tooltip("stderr:Q", title="standard error", format=".4f"))
        bar, point = base.mark_rule(strokeWidth=2, opacity=0.5), base.mark_point(filled=True, size=70, opacity=1)
        layered = [
            bar.encode(x=alt.X("least:Q", scale=_scale(scale)), x2="most:Q", y=order, color="pattern:N"),
            point.encode(x=axis, y=order, color="pattern:N", tooltip=shown),
        ]
        if dense:
            line = alt.Chart(alt.Data(values=dense)).mark_rule(color="#6b7280", strokeDash=[4, 3])
            layered.append(line.encode(x="value:Q", tooltip=["run:N", alt.Tooltip("value:Q", format=".4f")]))
        charts.append(alt.layer(*layered))
    return alt.vconcat(*charts) if charts else None


def perplexity(results: list[Results]) -> alt.TopLevelMixin | None:
    """Perplexity of every run (lower is better); dashed: the dense model. The bar is the 95 % interval of the
    difference to dense, by bootstrap over windows."""
    return _per_run(_measured(results, "perplexity_"), "perplexity", "log", "interval")


def accuracy(results: list[Results]) -> alt.TopLevelMixin | None:
    """Accuracy on tasks (higher is better); dashed: the dense model. The bar is 1.96 standard errors to each side."""
    records = [r for r in _measured(results, "acc_") if not r["what"].startswith("norm_")]
    return _per_run(records, "accuracy", "linear", "stderr")


def sparsity(results: list[Results]) -> alt.TopLevelMixin | None:
    """Perplexity over sparsity, one line per method; N:M patterns are squares."""
    records = _measured(results, "perplexity_")
    runs = [record for record in records if record["run"] != "dense"]
    if len({record["sparsity"] for record in runs}) < 2:
        return None  # a line needs two points
    charts = []
    for place, what in dict.fromkeys((r["place"], r["what"]) for r in runs):
        found = [r for r in runs if (r["place"], r["what"]) == (place, what)]
        base = alt.Chart(alt.Data(values=found), width=WIDTH - 220, height=280, title=place).encode(
            x=alt.X("sparsity:Q", axis=alt.Axis(format=".0%"), scale=alt.Scale(zero=False, padding=12)),
            y=alt.Y("value:Q", title=f"perplexity {what}", scale=_scale("log")),
            color=alt.Color("method:N", legend=alt.Legend(labelLimit=260)),
        )
        lines = base.transform_filter("datum.kind == 'unstructured'").mark_line(opacity=0.6)
        shape = alt.Shape("kind:N", scale=alt.Scale(domain=["unstructured", "N:M"], range=["circle", "square"]))
        shown = ["run:N", "method:N", "pattern:N", alt.Tooltip("value:Q", format=".4f")]
        charts.append(lines + base.mark_point(size=60, filled=True).encode(shape=shape, tooltip=shown))
    return alt.vconcat(*charts)


def price(results: list[Results]) -> alt.TopLevelMixin | None:
    """Perplexity over the time of all jobs that a run needs, shared ones too: look at the lower left. N:M patterns are
    squares."""
    records = [r for r in _measured(results, "perplexity_") if r["run"] != "dense" and r["minutes"]]
    if len(records) < 2:
        return None
    charts = []
    for place, what in dict.fromkeys((r["place"], r["what"]) for r in records):
        found = [r for r in records if (r["place"], r["what"]) == (place, what)]
        shape = alt.Shape("kind:N", scale=alt.Scale(domain=["unstructured", "N:M"], range=["circle", "square"]))
        base = alt.Chart(alt.Data(values=found), width=WIDTH - 220, height=280, title=place)
        charts.append(
            base.mark_point(size=60, filled=True).encode(
                x=alt.X("minutes:Q", title="minutes of all jobs", scale=_scale("log")),
                y=alt.Y("value:Q", title=f"perplexity {what}", scale=_scale("log")),
                color=alt.Color("method:N", legend=alt.Legend(labelLimit=260)),
                shape=shape,
                tooltip=[
                    "run:N",
                    "method:N",
                    "pattern:N",
                    alt.Tooltip("value:Q", format=".4f"),
                    alt.Tooltip("minutes:Q", format=".2f"),
                ],
            )
        )
    return alt.vconcat(*charts)


def _errors(results: list[Results]) -> list[dict[str, Any]]:
    records = []
    for one in results:
        prefix = "" if len(results) == 1 else f"{one.folder}: "
        for model in one.layouts:
            for run in one.settings.runs:
                for row in one.errors_of(model, run):
                    records.append({"model": prefix + model, "run": run.name, **{k: _short(v) for k, v in row.items()}})
    return records


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _heat_map(
    records: list[dict], field: str, title: str, scheme: str, scale: dict[str, Any]
) -> alt.TopLevelMixin | None:
    """A cell per block and linear, one run at a time, chosen below."""
    charts = []
    for place, model in enumerate(dict.fromkeys(record["model"] for record in records)):
        found = [record for record in records if record["model"] == model and record.get(field)]
        if not found:
            continue
        runs = list(dict.fromkeys(record["run"] for record in found))
        linears = list(dict.fromkeys(record["linear"] for record in found))
        blocks = len({record["block"] for record in found})
        choice = alt.param(
            f"run_{field}_{place}", value=runs[-1], bind=alt.binding_select(options=runs, name=f"{model}: run ")
        )
        charts.append(
            alt.Chart(
                alt.Data(values=[{k: r[k] for k in ("run", "block", "linear", field)} for r in found]),
                width=min(WIDTH - 160, max(120, 26 * blocks)),
                height=alt.Step(22),
                title=model,
            )
            .mark_rect()
            .encode(
                x=alt.X("block:O", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
                y=alt.Y("linear:N", sort=linears, title=None, axis=alt.Axis(labelLimit=200)),
                color=alt.Color(f"{field}:Q", title=title, scale=alt.Scale(scheme=scheme, **scale)),
                tooltip=["run:N", "block:O", "linear:N", alt.Tooltip(f"{field}:Q", format=".4g")],
            )
            .add_params(choice)
            .transform_filter(f"datum.run == {choice.name}")
        )
    return alt.vconcat(*charts).resolve_scale(color="independent") if charts else None


def layers(results: list[Results]) -> alt.TopLevelMixin | None:
    """Relative layer error of every linear at the end: the share of its output, in squares, that the pruned linear does
    not give."""
    return _heat_map(_errors(results), "end", "relative error", "viridis", {"type": "log"})


def reduction(results: list[Results]) -> alt.TopLevelMixin | None:
    """What refinement and update made of the first mask's error: 0.1 is a tenth of it, above 1 is worse."""
    changed = [r for r in _errors(results) if r.get("start") and r["end"] not in (0, r["start"])]
    records = [{**r, "left": r["end"] / r["start"]} for r in changed]
    if not records:
        return None
    farthest = max(max(r["left"], 1 / r["left"]) for r in records)  # so that white is 1: neither better nor worse
    scale = {"type": "log", "reverse": True, "domain": [1 / farthest, farthest]}
    return _heat_map(records, "left", "error left", "redblue", scale)


def depth(results: list[Results]) -> alt.TopLevelMixin | None:
    """Does error pile up? Relative layer error along the model, geometric mean over a block's linears, after each
    stage."""
    sums: dict[tuple, list[float]] = defaultdict(list)
    for record in _errors(results):
        for stage in ("mask", "refine", "update"):
            if record.get(stage):
                sums[record["model"], record["run"], record["block"], stage].append(math.log(record[stage]))
    values = [
        {"model": m, "run": r, "block": b, "stage": s, "error": _short(math.exp(sum(logs) / len(logs)))}
        for (m, r, b, s), logs in sums.items()
    ]
    if not values:
        return None
    several = len({value["model"] for value in values}) > 1
    for value in values:
        value["panel"] = f"{value['model']}: {value['run']}" if several else value["run"]
    order = list(dict.fromkeys(value["panel"] for value in values))
    colors = alt.Scale(domain=["mask", "refine", "update"], range=[STAGES[s] for s in ("mask", "refine", "update")])
    chart = alt.Chart(alt.Data(values=values), width=150, height=110).mark_line(point=True)
    return chart.encode(
        x=alt.X("block:Q", axis=alt.Axis(tickMinStep=1, format="d")),
        y=alt.Y("error:Q", title="relative error", scale=alt.Scale(type="log")),
        color=alt.Color("stage:N", title="after", scale=colors),
        tooltip=["run:N", "block:O", "stage:N", alt.Tooltip("error:Q", format=".4g")],
    ).facet(facet=alt.Facet("panel:N", sort=order, title=None, header=alt.Header(labelLimit=170)), columns=3)


def swaps(results: list[Results]) -> alt.TopLevelMixin | None:
    """Convergence of swaps: layer error over steps, which are swaps per row where each row has its own count, relative
    to the mask they began with; a line per linear."""
    values = []
    for one in results:
        for model in one.layouts:
            for run in one.settings.runs:
                for stage, row in one.stages_of(model, run) if run.refined else ():
                    curve = row.get("curve") if stage == "refine" else None
                    if not curve or not curve[0]:
                        continue
                    step = max(1, len(curve) // 40)
                    for count in [*range(0, len(curve) - 1, step), len(curve) - 1]:
                        head = {"run": f"{model}: {run.name}", "block": row["block"], "linear": row["linear"]}
                        values.append({**head, "swaps": count, "error": _short(curve[count] / curve[0])})
    if not values:
        return None
    chart = alt.Chart(alt.Data(values=values), width=230, height=170).mark_line(opacity=0.7)
    return chart.encode(
        x=alt.X("swaps:Q", title="steps (swaps per row)"),
        y=alt.Y("error:Q", title="error left", scale=alt.Scale(zero=False)),
        color="linear:N",
        detail="block:N",
        tooltip=["run:N", "block:O", "linear:N", "swaps:Q", "error:Q"],
    ).facet(facet=alt.Facet("run:N", title=None), columns=2)


def cost(results: list[Results]) -> alt.TopLevelMixin | None:
    """Time and memory by stage: seconds of all its jobs, and the peak memory of each."""
    values = [
        {"stage": key[0], "seconds": taken.seconds, "memory": taken.host_mb, "job": "/".join(map(str, key[1:]))}
        for one in results
        for key, taken in one.times.items()
    ]
    if not values:
        return None
    used = {value["stage"] for value in values}
    order = [stage for stage in STAGES if stage in used]
    color = alt.Color("stage:N", scale=alt.Scale(domain=order, range=[STAGES[s] for s in order]), legend=None)
    base = alt.Chart(alt.Data(values=values), width=WIDTH - 340, height=alt.Step(20))
    stages = alt.Y("stage:N", sort=order, title=None)
    bars = base.mark_bar().encode(
        x=alt.X("sum(seconds):Q", title="seconds of all jobs"),
        y=stages,
        color=color,
        tooltip=["stage:N", alt.Tooltip("count():Q", title="jobs"), alt.Tooltip("sum(seconds):Q", format=".1f")],
    )
    points = base.mark_tick(thickness=2).encode(
        x=alt.X("memory:Q", title="peak memory of a job, MiB"),
        y=stages,
        color=color,
        tooltip=["stage:N", "job:N", alt.Tooltip("memory:Q", format=".0f")],
    )
    return alt.hconcat(bars, points)


def rules(results: list[Results]) -> alt.TopLevelMixin | None:
    """The rules, and which needs what another makes. With pruned propagation what a run makes of a block goes back into
    the capture of the next one."""
    places = {
        "fetch_model": (0, 1), "fetch_data": (0, 0), "fetch_tasks": (5, 2), "calibrate": (1, 0), "capture": (2, 0),
        "mask": (3, 1), "refine": (4, 0), "update": (5, 1), "assemble": (6, 0), "perplexity": (7, 1), "tasks": (7, 2),
        "summary": (8, 0), "report": (9, 0),
    }  # fmt: skip
    pairs: set[tuple[str, str]] = set()
    counts: dict[str, int] = defaultdict(int)
    for one in results:
        for key, job in one.jobs.items():
            counts[key[0]] += 1
            pairs |= {(parent[0], key[0]) for parent in job.after if parent[0] != key[0]}
    edges = [
        {
            "x": places[a][0] + 0.45,
            "y": places[a][1],
            "x2": places[b][0] - 0.45,
            "y2": places[b][1],
            "needs": f"{a} → {b}",
        }
        for a, b in sorted(pairs)
    ]
    for edge in edges:
        edge["back"] = edge["x2"] < edge["x"]
    nodes = [
        {"rule": s, "jobs": n, "x": places[s][0], "y": places[s][1], "color": STAGES[s]} for s, n in counts.items()
    ]
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-0.5, 9.5]))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[2.5, -0.5]))
    lines = (
        alt.Chart(alt.Data(values=edges))
        .mark_rule(color="#6b7280")
        .encode(x=x, y=y, x2="x2:Q", y2="y2:Q", strokeDash=alt.StrokeDash("back:N", legend=None), tooltip=["needs:N"])
    )
    heads = alt.Chart(alt.Data(values=edges)).mark_point(shape="triangle-right", filled=True, color="#6b7280", size=40)
    boxes = alt.Chart(
        alt.Data(
            values=[
                {**n, "left": n["x"] - 0.45, "right": n["x"] + 0.45, "top": n["y"] - 0.25, "low": n["y"] + 0.25}
                for n in nodes
            ]
        )
    )
    text = alt.Chart(alt.Data(values=nodes)).mark_text(color="white", fontSize=10).encode(x=x, y=y, text="rule:N")
    return alt.layer(
        lines,
        heads.transform_filter("!datum.back").encode(x=alt.X("x2:Q", axis=None), y=alt.Y("y2:Q", axis=None)),
        boxes.mark_rect(cornerRadius=4).encode(
            x=alt.X("left:Q", axis=None), x2="right:Q", y=alt.Y("top:Q", axis=None), y2="low:Q",
            color=alt.Color("color:N", scale=None), tooltip=["rule:N", "jobs:Q"],
        ),
        text,
    ).properties(width=820, height=170)  # fmt: skip


def jobs(results: list[Results]) -> alt.TopLevelMixin | None:
    """Every job by its stage: from left to right what waits for what, a line per run."""
    charts = []
    for one in results:
        level: dict[Key, int] = {}
        for key, job in one.jobs.items():
            level[key] = 1 + max((level[parent] for parent in job.after), default=-1)
        lanes: dict[str, dict[int, int]] = {}
        spots: dict[Key, tuple[str, int]] = {}
        for key in one.jobs:
            lane = " / ".join(key[1:3]) if len(key) > 2 and not key[0].startswith("fetch") else "shared"
            column = lanes.setdefault(lane, defaultdict(int))
            spots[key] = (lane, column[level[key]])
            column[level[key]] += 1
        base: dict[str, int] = {}
        height = 0
        for lane, columns in lanes.items():
            base[lane] = height
            height += max(columns.values()) + 1
        nodes = [
            {
                "x": level[key],
                "y": base[spots[key][0]] + spots[key][1],
                "stage": key[0],
                "job": "/".join(map(str, key[1:])),
                "seconds": one.times[key].seconds if key in one.times else None,
            }
            for key in one.jobs
        ]
        used = {key[0] for key in one.jobs}
        order = [stage for stage in STAGES if stage in used]
        color = alt.Color("stage:N", sort=order, scale=alt.Scale(domain=order, range=[STAGES[s] for s in order]))
        x, y = alt.X("x:Q", axis=None), alt.Y("y:Q", axis=None, scale=alt.Scale(reverse=True))
        squares = alt.Chart(alt.Data(values=nodes)).mark_square(size=28, opacity=1)
        names = [{"lane": lane, "x": -0.6, "y": start} for lane, start in base.items()]
        parts = [
            squares.encode(x=x, y=y, color=color, tooltip=["stage:N", "job:N", "seconds:Q"]),
            alt.Chart(alt.Data(values=names)).mark_text(align="right", fontSize=10).encode(x=x, y=y, text="lane:N"),
        ]
        if len(nodes) <= DRAWN:
            where = {key: (node["x"], node["y"]) for key, node in zip(one.jobs, nodes, strict=True)}
            lines = [
                {"x": where[parent][0], "y": where[parent][1], "x2": where[key][0], "y2": where[key][1]}
                for key, job in one.jobs.items()
                for parent in job.after
            ]
            drawn = alt.Chart(alt.Data(values=lines)).mark_rule(color="#d1d5db", strokeWidth=0.5)
            parts.insert(0, drawn.encode(x=x, y=y, x2="x2:Q", y2="y2:Q"))
        charts.append(alt.layer(*parts).properties(width=WIDTH, height=min(900, max(80, 9 * height))))
    return alt.vconcat(*charts)
