"""Tables of results: one row per model and run, one row per linear and stage."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.csv
import pyarrow.parquet

from gramprune.errors import GrampruneError, shorter
from gramprune.storage import files
from gramprune.storage.fingerprint import canonical, short

AGAIN = "it is damaged or not gramprune's: delete it, and run snakemake to have it made again"
RECIPE = (
    "mask", "refine", "update", "pattern", "granularity", "allocation", "propagation", "target", "bias", "reconstruct",
    "precision",
)  # fmt: skip
USUAL = {"allocation": "uniform", "target": "own", "bias": "kept", "reconstruct": "none", "precision": "float32"}
"""Not shown to people unless a run has another."""
SHOWN = ("perplexity_", "acc_")
"""How the names of the columns begin that are figures to compare; behind it stands the text or task."""


def summary_rows(
    rows: list[dict[str, Any]],  # model, run and recipe, the dense model first
    evaluations: dict[tuple[str, str], list[dict[str, Any]]],  # by model and run
    sparsity: dict[tuple[str, str], float],  # measured over the pruned matrices, by model and run
) -> list[dict[str, Any]]:
    """The summary: what was done, the sparsity reached, and what was measured, with what it depends on.

    Per text: `perplexity_`, how much higher than dense with a 95 % interval (`delta_`, `delta_low_`, `delta_high_`),
    `window_`, `stride_`, `tokens_`. Per task and metric of lm-eval: `<metric>_` and `<metric>_stderr_`, `items_`,
    `shots_`. `same_<column>` stands for the data, tokenizer and settings: rows that differ in it cannot be compared.
    """
    dense = {
        (model, result["dataset"]): result
        for (model, run), results in evaluations.items()
        if run == "dense"
        for result in results
        if "dataset" in result
    }
    complete = []
    for row in rows:
        key = (row["model"], row["run"])
        figures: dict[str, Any] = {}
        details: dict[str, Any] = {}
        for result in evaluations[key]:
            if "dataset" in result:
                _add_perplexity(figures, details, result, dense[row["model"], result["dataset"]])
            else:
                _add_tasks(figures, details, result)
        recipe = {name: row.get(name) for name in RECIPE}
        head = {"model": row["model"], "run": row["run"], **recipe, "sparsity": sparsity.get(key, 0.0)}
        complete.append({**head, **figures, **details})
    return complete


def _add_perplexity(figures: dict, details: dict, result: dict[str, Any], dense: dict[str, Any]) -> None:
    name = result["dataset"]
    figures[f"perplexity_{name}"] = result["perplexity"]
    details[f"window_{name}"], details[f"stride_{name}"] = result["length"], result["stride"]
    details[f"tokens_{name}"] = result["predicted_tokens"]
    details[f"same_perplexity_{name}"] = short(canonical([result["tokens_sha256"], result["stride"]]))
    if result is not dense:
        change, low, high = difference(result, dense)
        details |= {f"delta_{name}": change, f"delta_low_{name}": low, f"delta_high_{name}": high}


def _add_tasks(figures: dict, details: dict, result: dict[str, Any]) -> None:
    for name, task in result["tasks"].items():
        for metric, value in task["metrics"].items():
            if not metric.endswith("_stderr"):
                figures[f"{metric}_{name}"] = value
                figures[f"{metric}_stderr_{name}"] = task["metrics"].get(f"{metric}_stderr")
                same = [task["sha256"], task["version"], task["shots"], task["samples"], result["lm_eval"]]
                details[f"same_{metric}_{name}"] = short(canonical(same))
        details[f"items_{name}"], details[f"shots_{name}"] = task["samples"], task["shots"]
    for name, group in result["groups"].items():
        figures |= {f"{metric}_{name}": value for metric, value in group["metrics"].items() if "stderr" not in metric}


def difference(
    pruned: dict[str, Any],  # as `perplexity.perplexity` returns
    dense: dict[str, Any],  # of the same windows
    draws: int = 2000,
) -> tuple[float, float, float]:
    """How much higher the perplexity of a pruned model is than the dense one's, and a 95 % interval.

    The interval is the bootstrap's over windows: both models see the same windows, so these are drawn in pairs, with
    replacement. It says how far another text of the kind could move the difference, not how another calibration
    would. Same figures, same interval. Raises GrampruneError unless the windows are the same.
    """
    about = ("windows", "length", "stride", "predicted_tokens")
    if any(pruned[name] != dense[name] for name in about):
        raise GrampruneError(
            f"perplexities over {pruned['windows']} windows of {pruned['length']} and over {dense['windows']} of "
            f"{dense['length']} cannot be compared: evaluate both again with the same settings."
        )
    weights = np.array(pruned["tokens_per_window"], dtype=float)
    losses = np.array([pruned["loss_per_window"], dense["loss_per_window"]]) * weights
    generator, even = np.random.default_rng(0), np.full(len(weights), 1 / len(weights))
    gaps = []
    for _ in range(draws):
        times = generator.multinomial(len(weights), even)  # that each window was drawn
        ours, theirs = np.exp(np.minimum(losses @ times / (weights @ times), 700))
        gaps.append(ours - theirs)
    low, high = np.quantile(gaps, [0.025, 0.975])
    return pruned["perplexity"] - dense["perplexity"], float(low), float(high)


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


def write_table(content: arrow.Table, parquet: Path, csv: Path | None = None) -> None:
    """Write a table as Parquet, and as CSV."""
    with files.atomic(Path(parquet)) as part:
        pyarrow.parquet.write_table(content, part)
    if csv is not None:
        with files.atomic(Path(csv)) as part:
            pyarrow.csv.write_csv(content, part, pyarrow.csv.WriteOptions(quoting_style="needed"))


def read_table(path: Path, texts: Container[str], needed: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of a table that `write_table` wrote. texts: its columns that hold text; all others hold numbers.

    Raises GrampruneError, naming the file, if it is missing, damaged, or has other columns.
    """
    try:
        content = pyarrow.parquet.read_table(path)
        rows = content.to_pylist()
    except FileNotFoundError as error:
        raise GrampruneError(
            f"{path} does not exist: run snakemake to its end, or name the folder of results."
        ) from error
    except (OSError, ValueError, arrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise GrampruneError(f"{path} cannot be read as a table: {reason}; {AGAIN}.") from error
    for name in needed:
        if name not in content.column_names:
            raise GrampruneError(f"{path} has no column {name!r}; {AGAIN}.")
    for field in content.schema:
        expected = "text" if field.name in texts else "lists of numbers" if field.name == "curve" else "numbers"
        if not pyarrow.types.is_null(field.type) and not _holds(field.type, expected):
            name = shorter(field.name)
            raise GrampruneError(f"{path}: the column {name} holds {field.type}, expected {expected}; {AGAIN}.")
    return [{name: _printable(value) for name, value in row.items()} for row in rows]


def _printable(value: Any) -> Any:
    """Text without line ends and control characters, which not all that draw it can take."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(character if character.isprintable() else "\ufffd" for character in value)


def _holds(kind: arrow.DataType, expected: str) -> bool:
    """Whether a column of that type holds "text", "numbers" or "lists of numbers"."""
    if expected == "text":
        return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
    if expected == "lists of numbers":
        return pyarrow.types.is_list(kind) and (
            pyarrow.types.is_null(kind.value_type) or _holds(kind.value_type, "numbers")
        )
    return pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_null(kind)


def read_summary(path: Path) -> list[dict[str, Any]]:
    """The summary's rows, one per model and run. Raises GrampruneError, naming it, if it is missing or damaged."""
    head = ("model", "run", *RECIPE, "sparsity")
    same = [f"same_{name}" for name in _column_names(path) if name.startswith(SHOWN)]
    needed = [name for name in head if name != "allocation"]  # earlier tables have none
    rows = [{"allocation": "uniform", **row} for row in read_table(path, {"model", "run", *RECIPE, *same}, needed)]
    for row in rows:
        known = ("model", "run", "sparsity") if row["run"] == "dense" else head
        if lacking := [name for name in known if row[name] is None]:
            raise GrampruneError(f"{path}: a row has no {lacking[0]}; {AGAIN}.")
    return rows


def read_layers(path: Path) -> list[dict[str, Any]]:
    """What every stage measured of every linear. Raises GrampruneError, naming it, if it is missing or damaged."""
    texts = {"model", "run", "stage", "mask", "refine", "linear", "fallback"}
    head = ("model", "run", "stage", "block", "linear", "tokens", "dead_inputs", "error", "relative_error")
    rows = read_table(path, texts, head)
    errors = {"capture": (), "mask": ("error", "relative_error"), "reconstruct": ("moved", "best")}
    for row in rows:
        figures = [row.get(name) for name in errors.get(row["stage"], ("error", "relative_error", "error_before"))]
        figures += [row["tokens"], row["dead_inputs"]] if row["stage"] == "capture" else [*(row.get("curve") or ())]
        is_number = all(figure is not None and 0 <= figure < math.inf for figure in figures)
        if not is_number or any(row[name] is None for name in ("model", "run", "stage", "block", "linear")):
            where = f"block {row['block']}, {shorter(row['linear'])}, stage {shorter(row['stage'])}"
            raise GrampruneError(f"{path}: {where}: a figure is missing or cannot be; {AGAIN}.")
    return rows


def _column_names(path: Path) -> list[str]:
    try:
        return pyarrow.parquet.read_schema(path).names
    except (OSError, ValueError, arrow.ArrowException):
        return []  # reading the table says why


def shown(rows: list[dict[str, Any]]) -> list[str]:
    """The columns for people: without what figures depend on, and without what no run departs from."""
    usual = {name for name, value in USUAL.items() if all(row.get(name) in (value, None) for row in rows)}
    names = dict.fromkeys(name for row in rows for name in row)
    head = [name for name in ("model", "run", *RECIPE, "sparsity") if name in names and name not in usual]
    errors = {error_of(name) for name in names if name.startswith("acc_")}
    return head + [name for name in names if name.startswith(SHOWN) and name not in errors]


def cell(name: str, row: dict[str, Any]) -> str:
    """A figure of the summary for people; accuracies with their standard error."""
    value = row.get(name)
    if value is None:
        return "-"
    if name.startswith("perplexity_"):
        return f"{value:.2f}" if value < 1e6 else f"{value:.2e}"
    if name.startswith("acc_"):
        error = row.get(error_of(name))
        return f"{100 * value:.1f} %" + (f" ± {100 * error:.1f}" if error is not None else "")
    return f"{100 * value:.2f} %" if name == "sparsity" else str(value)


def error_of(name: str) -> str:
    """The column with the standard errors of a column of accuracies."""
    metric = "acc_norm" if name.startswith("acc_norm_") else "acc"
    return f"{metric}_stderr_{name.removeprefix(metric + '_')}"


def method(row: dict[str, Any]) -> str:
    """A recipe's mask, refinement and update in a few words."""
    if row["run"] == "dense":
        return "-"
    parts = [row["mask"], row["refine"], row["update"]]
    text = " + ".join(part for part in parts if part not in ("none", "joint")) + " joint" * (row["update"] == "joint")
    text += f", {row['allocation']} allocation" if row["allocation"] != "uniform" else ""
    text += ", dense target" if row["target"] == "dense" else ""
    return text + (", reconstructed" if row["reconstruct"] != "none" else "")


def _numeric(name: str) -> bool:
    return name.startswith((*SHOWN, "sparsity"))


def as_text(rows: list[dict[str, Any]]) -> str:
    """The summary as aligned columns."""
    names = shown(rows)
    lines = [names, *([cell(name, row) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    aligned = [
        "  ".join(
            c.rjust(w) if _numeric(n) else c.ljust(w) for c, w, n in zip(line, widths, names, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([aligned[0], "-" * len(aligned[0]), *aligned[1:]])


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The summary as a table in Markdown."""
    names = shown(rows)
    rule = ["--:" if _numeric(name) else "---" for name in names]
    lines = [names, rule, *([cell(name, row) for name in names] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def as_latex(rows: list[dict[str, Any]]) -> str:
    """The summary as a table in LaTeX, for the package booktabs."""
    names = shown(rows)

    def line(cells: list[str]) -> str:
        return " & ".join(re.sub(r"[%_&#]", r"\\\g<0>", c).replace("±", r"$\pm$") for c in cells) + r" \\"

    columns = "".join("r" if _numeric(name) else "l" for name in names)
    body = [line([cell(name, row) for name in names]) for row in rows]
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(names), r"\midrule"]
    return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"
