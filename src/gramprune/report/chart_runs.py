"""Charts of runs: what was measured of every one, over its sparsity, and over the time that it took."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import altair as alt

from gramprune.report.drawing import COLORS, WIDTH, kind_of, scale
from gramprune.report.read import Results
from gramprune.report.results import method

KINDS = {"one fraction": "circle", "N:M": "square", "several": "diamond"}
GREY = "#808894"  # legible on white and on black
CLOSE = 20  # runs: more of them are drawn closer


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
                        "run": row["run"],
                        "method": method(row),
                        "pattern": row["pattern"] or "dense",
                        "sparsity": row["sparsity"],
                        "kind": kind_of(row["pattern"] or ""),
                        "what": what,
                        "value": value,
                    }
                    if prefix == "perplexity_":
                        record |= {"low": row.get(f"delta_low_{what}"), "high": row.get(f"delta_high_{what}")}
                        record["minutes"] = 60 * (one.cost_of(row["model"], row["run"]) or {}).get("hours", 0)
                        record["granularity"], record["propagation"] = row["granularity"], row["propagation"]
                    else:
                        record["stderr"] = row.get(f"{prefix}stderr_{what}")
                    records.append(record)
    return records


def _per_run(records: list[dict[str, Any]], title: str, kind: str, error: str | None) -> alt.TopLevelMixin | None:
    """A point per run, in the configuration's order, and the dense model as a line; a panel per model and column."""
    groups = defaultdict(list)
    for record in records:
        groups[record["place"], record["what"]].append(record)
    patterns = list(dict.fromkeys(record["pattern"] for record in records if record["run"] != "dense"))
    charts = []
    for (place, what), found in groups.items():
        dense = [record for record in found if record["run"] == "dense"]
        runs = [record for record in found if record["run"] != "dense"]
        axis = alt.X("value:Q", title=f"{title} {what}", scale=scale(kind), axis=alt.Axis(labelOverlap="greedy"))
        names = alt.Axis(labelLimit=260, labelOverlap=False)
        order = alt.Y("run:N", sort=[record["run"] for record in runs], title=None, axis=names)
        color = _color("pattern", patterns)
        shown = ["run:N", "method:N", "pattern:N", alt.Tooltip("value:Q", format=".4f")]
        step = alt.Step(22 if len(runs) <= CLOSE else 15)
        base = alt.Chart(alt.Data(values=runs), width=WIDTH - 160, height=step, title=place)
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
        bar, point = base.mark_rule(strokeWidth=2, opacity=0.5), base.mark_point(filled=True, size=60, opacity=1)
        layered = [
            bar.encode(x=alt.X("least:Q", scale=scale(kind)), x2="most:Q", y=order, color=color),
            point.encode(x=axis, y=order, color=color, tooltip=shown),
        ]
        if dense:
            line = alt.Chart(alt.Data(values=dense)).mark_rule(color="#6b7280", strokeDash=[4, 3])
            layered.append(line.encode(x="value:Q", tooltip=["run:N", alt.Tooltip("value:Q", format=".4f")]))
        charts.append(alt.layer(*layered))
    return alt.vconcat(*charts).resolve_scale(color="independent") if charts else None


def _color(field: str, values: list[str]) -> alt.Color:
    """A color for every value, the same in all panels, and a legend that has room for all of them."""
    colors = [COLORS[place % len(COLORS)] for place in range(len(values))]
    legend = alt.Legend(labelLimit=360, symbolLimit=0, columns=1 + len(values) // 24)
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=values, range=colors), legend=legend)


def perplexity(results: list[Results]) -> alt.TopLevelMixin | None:
    """Perplexity of every run (lower is better); dashed: the dense model. The bar is the 95 % interval of the
    difference to dense, by bootstrap over windows."""
    return _per_run(_measured(results, "perplexity_"), "perplexity", "log", "interval")


def accuracy(results: list[Results]) -> alt.TopLevelMixin | None:
    """Accuracy on tasks (higher is better); dashed: the dense model. The bar is 1.96 standard errors to each side."""
    records = [r for r in _measured(results, "acc_") if not r["what"].startswith("norm_")]
    return _per_run(records, "accuracy", "linear", "stderr")


def recipes(runs: list[dict[str, Any]]) -> None:
    """Give every record its recipe: all that is the same along a line over sparsity.

    That is the method; with granularity and propagation where runs of a method and pattern differ in them, and with
    the run's name where they differ in something else, such as a method's options.
    """
    label = "method"
    for more in (("granularity", "propagation"), ("run",)):
        times: dict[tuple, set[str]] = defaultdict(set)
        for record in runs:
            record.setdefault("recipe", record[label])
            times[record["place"], record["what"], record["recipe"], record["pattern"]].add(record["run"])
        twice = {key[2] for key, names in times.items() if len(names) > 1}
        for record in runs:
            if record["recipe"] in twice:
                record["recipe"] += "".join(f", {record[name]}" for name in more if record[name] != "group")


def sparsity(results: list[Results]) -> alt.TopLevelMixin | None:
    """Perplexity over sparsity, a line per recipe. Squares: N:M; diamonds: linears of different patterns, at the
    sparsity that was measured. A click on a recipe in the legend brings it out, with shift several; a click beside it
    shows all."""
    runs = [record for record in _measured(results, "perplexity_") if record["run"] != "dense"]
    if len({record["sparsity"] for record in runs}) < 2:
        return None  # a line needs two points
    at = sorted({round(record["sparsity"], 2) for record in runs})
    axis = alt.Axis(format="~%", labelOverlap="greedy", **({"values": at} if len(at) <= 12 else {}))
    x = alt.X("sparsity:Q", axis=axis, scale=alt.Scale(zero=False, padding=12))
    charts = []
    for base, recipe, shape, opacity, shown, chosen in _by_recipe(runs, "sparsity"):
        base = base.encode(x=x)
        lines = base.transform_filter("datum.kind == 'one fraction'").mark_line()
        lines = lines.encode(color=recipe, opacity=opacity(0.7))
        shown = [*shown, alt.Tooltip("sparsity:Q", format=".2%")]
        points = base.mark_point(size=60, filled=True).encode(
            color=recipe, shape=shape, opacity=opacity(1.0), tooltip=shown
        )
        charts.append(lines + points.add_params(chosen))
    return alt.vconcat(*charts).resolve_scale(color="independent", shape="independent")


def price(results: list[Results]) -> alt.TopLevelMixin | None:
    """Perplexity over the time of all jobs that a run needs, shared ones too: look at the lower left. Grey: of every
    pattern the runs that no other beats in both. A click on a recipe in the legend brings it out."""
    runs = [r for r in _measured(results, "perplexity_") if r["run"] != "dense" and r["minutes"]]
    if len(runs) < 2:
        return None
    x = alt.X("minutes:Q", title="minutes of all jobs", scale=scale("log"), axis=alt.Axis(labelOverlap="greedy"))
    charts = []
    for base, recipe, shape, opacity, shown, chosen in _by_recipe(runs, "price"):
        best = front([*base.data.values])
        shown = [*shown, alt.Tooltip("minutes:Q", format=".2f")]
        points = base.mark_point(size=60, filled=True).encode(
            x=x, color=recipe, shape=shape, opacity=opacity(1.0), tooltip=shown
        )
        edge = base.properties(data=alt.Data(values=best)).encode(x=x)
        heads = base.properties(data=alt.Data(values=named(best, base.data.values, base.width, base.height)))
        names = heads.encode(x=x).mark_text(align="left", dx=6, dy=-8, color=GREY, limit=200)
        lines = edge.mark_line(color="#9ca3af", strokeDash=[3, 2]).encode(detail="pattern:N")
        charts.append(alt.layer(lines, points.add_params(chosen), names.encode(text="pattern:N")))
    return alt.vconcat(*charts).resolve_scale(color="independent", shape="independent")


def front(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every pattern the runs that no other beats in both minutes and value, the quickest one marked `first`."""
    found: list[dict[str, Any]] = []
    least: dict[str, float] = {}
    for record in sorted(runs, key=lambda record: (record["minutes"], record["value"])):
        pattern = record["pattern"]
        if record["value"] < least.get(pattern, float("inf")):
            found.append({**record, "first": pattern not in least})
            least[pattern] = record["value"]
    return found


def named(best: list[dict[str, Any]], runs: list[dict[str, Any]], width: int, height: int) -> list[dict[str, Any]]:
    """The quickest run of every front; its value is where its name stands: above another name that is in the way."""
    values, minutes = ([run[name] for run in runs if 0 < run["value"] < math.inf] for name in ("value", "minutes"))
    firsts = [run for run in best if run["first"] and run["value"] in values]  # others cannot be drawn
    # Pixels for a factor of e.
    up, across = (
        size / (math.log(max(those) / min(those)) or 1) if those else 0
        for size, those in ((height, values), (width, minutes))
    )
    found: list[dict[str, Any]] = []
    for record in sorted(firsts, key=lambda run: run["value"]):
        place = record["value"]
        for other in sorted(found, key=lambda run: run["value"]):
            left = min(record, other, key=lambda run: run["minutes"])
            beside = across * abs(math.log(record["minutes"] / other["minutes"])) > 7 * len(left["pattern"]) + 6
            if not beside and up * abs(math.log(place / other["value"])) < 12:
                place = other["value"] * math.exp(12 / up)
        found.append({**record, "value": place})
    return found


def _by_recipe(runs: list[dict[str, Any]], chart: str) -> Iterator[tuple]:
    """For every model and text: a chart with its axis, what tells recipes apart, and the choice among them."""
    recipes(runs)
    names = list(dict.fromkeys(record["recipe"] for record in runs))
    kinds = [kind for kind in KINDS if any(record["kind"] == kind for record in runs)]
    shapes = alt.Scale(domain=kinds, range=[KINDS[kind] for kind in kinds])
    legend = alt.Legend(symbolFillColor=GREY, symbolStrokeColor=GREY) if len(kinds) > 1 else None
    shape = alt.Shape("kind:N", title="pattern", scale=shapes, legend=legend)
    height = max(280, 15 * min(len(names), 24))
    for number, (place, what) in enumerate(dict.fromkeys((r["place"], r["what"]) for r in runs)):
        found = [r for r in runs if (r["place"], r["what"]) == (place, what)]
        chosen = alt.selection_point(f"recipe_{chart}_{number}", fields=["recipe"], bind="legend")
        base = alt.Chart(alt.Data(values=found), width=WIDTH - 220, height=height, title=place)
        base = base.encode(y=alt.Y("value:Q", title=f"perplexity {what}", scale=scale("log")))
        shown = ["run:N", "recipe:N", "pattern:N", alt.Tooltip("value:Q", format=".4f")]

        def opacity(usual: float, chosen: alt.Parameter = chosen) -> Any:
            return alt.condition(chosen, alt.value(usual), alt.value(0.08))

        yield base, _color("recipe", names), shape, opacity, shown, chosen
