"""Charts of jobs: what they took, and what waits for what."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Any

import altair as alt

from gramprune.experiment.pipeline import Key
from gramprune.report.drawing import WIDTH, short
from gramprune.report.read import STAGES, Results

DRAWN = 2000  # jobs: of more of them, numbers and time are drawn by run and stage


def cost(results: list[Results]) -> alt.TopLevelMixin | None:
    """Time and memory by stage: seconds of all its jobs; and the peak memory of a job, from the least to the most, with
    a tick at the median."""
    taken: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for one in results:
        for key, found in one.times.items():
            taken[key[0]].append((found.host_mb, found.seconds, "/".join(map(str, key[1:]))))
    values = [
        {
            "stage": stage,
            "jobs": len(found),
            "seconds": short(float(sum(each[1] for each in found))),
            "least": min(each[0] for each in found),
            "median": median(each[0] for each in found),
            "most": max(each[0] for each in found),
            "largest": max(found)[2],
        }
        for stage, found in taken.items()
    ]
    if not values:
        return None
    order = [stage for stage in STAGES if stage in taken]
    color = alt.Color("stage:N", scale=alt.Scale(domain=order, range=[STAGES[s] for s in order]), legend=None)
    base = alt.Chart(alt.Data(values=values), width=WIDTH - 340, height=alt.Step(20))
    y = alt.Y("stage:N", sort=order, title=None)
    bars = base.mark_bar().encode(
        x=alt.X("seconds:Q", title="seconds of all jobs"), y=y, color=color,
        tooltip=["stage:N", "jobs:Q", alt.Tooltip("seconds:Q", format=".1f")],
    )  # fmt: skip
    shown = ["stage:N", "jobs:Q", "least:Q", "median:Q", "most:Q", alt.Tooltip("largest:N", title="job with the most")]
    title = "peak memory of a job, MiB"
    spans = base.mark_bar(opacity=0.4, height=8).encode(
        x=alt.X("least:Q", title=title), x2="most:Q", y=y, color=color, tooltip=shown
    )
    ticks = base.mark_tick(thickness=3, height=14).encode(x=alt.X("median:Q", title=title), y=y, color=color)
    return alt.hconcat(bars, alt.layer(spans, ticks.encode(tooltip=shown)))


def rules(results: list[Results]) -> alt.TopLevelMixin | None:
    """The rules, and which needs what another makes. With pruned propagation what a run makes of a block goes back into
    the capture of the next one."""
    places = {
        "fetch_model": (0, 1), "fetch_data": (0, 0), "fetch_tasks": (7, 2), "calibrate": (1, 0), "capture": (2, 0),
        "allocate": (3, 2), "mask": (4, 1), "refine": (5, 0), "update": (6, 1), "reconstruct": (7, 0),
        "assemble": (8, 1), "perplexity": (9, 0), "tasks": (9, 2), "summary": (10, 1), "report": (11, 0),
    }  # fmt: skip
    pairs: set[tuple[str, str]] = set()
    counts: dict[str, int] = defaultdict(int)
    for one in results:
        for key, job in one.jobs.items():
            counts[key[0]] += 1
            pairs |= {(parent[0], key[0]) for parent in job.after if parent[0] != key[0]}
    edges: list[dict[str, Any]] = [
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
    nodes: list[dict[str, Any]] = [
        {"rule": s, "jobs": n, "x": places[s][0], "y": places[s][1], "color": STAGES[s]} for s, n in counts.items()
    ]
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-0.5, 11.5]))
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
    ).properties(width=900, height=170)  # fmt: skip


def jobs(results: list[Results]) -> alt.TopLevelMixin | None:
    """Every job by its stage: from left to right what waits for what, a line per run. Of more than 2,000 jobs: how many
    a run has of every stage, and their time."""
    return alt.vconcat(*(_graph(one) if len(one.jobs) <= DRAWN else _counted(one) for one in results))


def _counted(one: Results) -> alt.TopLevelMixin:
    """How many jobs every run has of every stage, colored by their minutes."""
    found: dict[tuple[str, str], list[Key]] = defaultdict(list)
    for key in one.jobs:
        found[_lane(key), key[0]].append(key)
    values = [
        {
            "lane": lane,
            "stage": stage,
            "jobs": len(keys),
            "minutes": short(sum(one.times[key].seconds for key in keys if key in one.times) / 60),
        }
        for (lane, stage), keys in found.items()
    ]
    lanes = list(dict.fromkeys(value["lane"] for value in values))
    order = [stage for stage in STAGES if any(value["stage"] == stage for value in values)]
    y = alt.Y("lane:N", sort=lanes, title=None, axis=alt.Axis(labelLimit=260, labelOverlap=False))
    x = alt.X("stage:N", sort=order, title=None, axis=alt.Axis(orient="top", labelAngle=-30))
    base = alt.Chart(alt.Data(values=values), width=WIDTH, height=alt.Step(14)).encode(x=x, y=y)
    cells = base.mark_rect().encode(
        color=alt.Color("minutes:Q", scale=alt.Scale(type="symlog", range=["#dbeafe", "#60a5fa"])),
        tooltip=["lane:N", "stage:N", "jobs:Q", "minutes:Q"],
    )
    return cells + base.mark_text(fontSize=10, color="#111827").encode(text="jobs:Q")


def _lane(key: Key) -> str:
    """The line of a job: its model and run, or the one for what they share."""
    return " / ".join(key[1:3]) if len(key) > 2 and not key[0].startswith("fetch") else "shared"


def _graph(one: Results) -> alt.TopLevelMixin:
    """Every job as a square, and lines to those that wait for it."""
    level: dict[Key, int] = {}
    for key, job in one.jobs.items():
        level[key] = 1 + max((level[parent] for parent in job.after), default=-1)
    lanes: dict[str, dict[int, int]] = {}
    spots: dict[Key, tuple[str, int]] = {}
    for key in one.jobs:
        lane = _lane(key)
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
    where = {key: (node["x"], node["y"]) for key, node in zip(one.jobs, nodes, strict=True)}
    lines = [
        {"x": where[parent][0], "y": where[parent][1], "x2": where[key][0], "y2": where[key][1]}
        for key, job in one.jobs.items()
        for parent in job.after
    ]
    drawn = alt.Chart(alt.Data(values=lines)).mark_rule(color="#9ca3af", opacity=0.5, strokeWidth=0.5)
    parts.insert(0, drawn.encode(x=x, y=y, x2="x2:Q", y2="y2:Q"))
    return alt.layer(*parts).properties(width=WIDTH, height=min(900, max(80, 9 * height)))
