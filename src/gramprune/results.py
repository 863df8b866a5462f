"""Tables of results: one row per model and run, one row per linear and stage."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.csv
import pyarrow.parquet

from gramprune import files

RECIPE = ("mask", "refine", "update", "pattern", "granularity", "propagation", "target", "precision")
USUAL = {"target": "own", "precision": "float32"}  # not shown to people unless a run has another


def summary_rows(
    rows: list[dict[str, Any]],  # model, run and recipe, the dense model first
    evaluations: dict[tuple[str, str], list[dict[str, Any]]],  # by model and run
    sparsity: dict[tuple[str, str], float],  # measured over the pruned matrices, by model and run
) -> list[dict[str, Any]]:
    """The summary: what was done, the sparsity reached, and perplexities with window and token count."""
    complete = []
    for row in rows:
        key = (row["model"], row["run"])
        recipe = {name: row.get(name) for name in RECIPE}
        full = {"model": row["model"], "run": row["run"], **recipe, "sparsity": sparsity.get(key, 0.0)}
        for result in evaluations[key]:
            full[f"perplexity_{result['dataset']}"] = result["perplexity"]
        for result in evaluations[key]:
            full[f"window_{result['dataset']}"] = result["length"]
            full[f"tokens_{result['dataset']}"] = result["predicted_tokens"]
        complete.append(full)
    return complete


def layer_rows(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What every stage measured of every linear; rows of the `dense` trail are shared by runs."""
    rows = []
    for content in metrics:
        labels = dict(content["labels"])
        run = labels.pop("run", None) or labels.pop("trail")
        job = {name: value for name, value in content.items() if name not in ("labels", "linears")}
        for linear in content["linears"]:
            head = {"model": labels["model"], "run": run, "stage": content["stage"], "block": int(labels["block"])}
            stage = {f"stage_{name}" if name == "seconds" else name: v for name, v in job.items()}
            rows.append({**head, "mask": labels.get("mask"), "refine": labels.get("refine"), **stage, **linear})
    return rows


def table(rows: list[dict[str, Any]]) -> arrow.Table:
    """Rows with unequal keys as a table; what a row lacks is null."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return arrow.table({name: [row.get(name) for row in rows] for name in columns})


def write_table(content: arrow.Table, parquet: Path | None = None, csv: Path | None = None) -> None:
    """Write a table as Parquet and CSV."""
    if parquet is not None:
        with files.atomic(Path(parquet)) as part:
            pyarrow.parquet.write_table(content, part)
    if csv is not None:
        with files.atomic(Path(csv)) as part:
            pyarrow.csv.write_csv(content, part, pyarrow.csv.WriteOptions(quoting_style="needed"))


def _shown(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of the summary for people: without windows, token counts and what no run departs from."""
    usual = {name for name, value in USUAL.items() if all(row.get(name) in (value, None) for row in rows)}
    names = [name for name in rows[0] if not name.startswith(("window_", "tokens_")) and name not in usual]

    def cell(name: str, value: Any) -> str:
        if value is None:
            return "-"
        if name.startswith("perplexity_"):
            return f"{value:.2f}" if value < 1e6 else f"{value:.2e}"
        return f"{100 * value:.2f} %" if name == "sparsity" else str(value)

    return names, [[cell(name, row[name]) for name in names] for row in rows]


def as_text(rows: list[dict[str, Any]]) -> str:
    """The summary as aligned columns."""
    names, cells = _shown(rows)
    lines = [names, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    numeric = [name.startswith(("perplexity_", "sparsity")) for name in names]
    aligned = [
        "  ".join(
            c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([aligned[0], "-" * len(aligned[0]), *aligned[1:]])


def as_html(rows: list[dict[str, Any]]) -> str:
    """The summary as a small page of its own."""
    names, cells = _shown(rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in line) + "</tr>" for line in cells)
    style = (
        "body{font:14px system-ui,sans-serif;margin:1em}table{border-collapse:collapse}"
        "th,td{padding:.3em .8em;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}"
        "tr:nth-child(1){background:#f4f4f4}"
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Summary</title><style>{style}</style>"
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></html>\n"
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Perplexity of every run, one panel per model and dataset, runs of one pattern together, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gramprune"  # same rows, same bytes
    import matplotlib.pyplot as pyplot
    from matplotlib import ticker

    models = list(dict.fromkeys(row["model"] for row in rows))
    datasets = [name for name in rows[0] if name.startswith("perplexity_")]
    runs = [row for row in rows if row["model"] == models[0]]
    patterns = list(dict.fromkeys(row["pattern"] for row in runs if row["pattern"]))
    text = {"textcoords": "offset points", "va": "center", "size": 8}
    size = (3 + 3.5 * len(datasets), (0.8 + 0.32 * len(runs)) * len(models))
    figure, axes = pyplot.subplots(len(models), len(datasets), figsize=size, squeeze=False, layout="constrained")
    for line, model in zip(axes, models, strict=True):
        for axis, dataset in zip(line, datasets, strict=True):
            shown = [row for row in rows if row["model"] == model]
            dense = shown[0][dataset]
            for place, row in enumerate(shown[1:]):
                color = f"C{patterns.index(row['pattern'])}"
                axis.plot([dense, row[dataset]], [place, place], color=color, linewidth=1.5, alpha=0.4)
                axis.plot(row[dataset], place, "o", color=color)
                axis.annotate(f"{row[dataset]:.1f}", (row[dataset], place), (6, 0), **text)
            axis.axvline(dense, color="black", linewidth=1)
            axis.annotate(f"dense {dense:.1f}", (dense, -0.7), (4, 0), **text)
            axis.set(xscale="log", ylim=(len(shown) - 1.4, -1.1), title=model)
            axis.set_xlabel(f"{dataset.replace('_', ' ', 1)} (lower is better)")
            axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
            axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, place: f"{value:g}"))
            axis.xaxis.set_minor_locator(ticker.NullLocator())
            axis.set_yticks(range(len(shown) - 1), [row["run"] for row in shown[1:]], size=8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(x=0.15)
    with files.atomic(Path(path)) as part:
        figure.savefig(part, format="svg", metadata={"Date": None})
