"""What pruning costs a real model: perplexity, accuracy, time and memory of the usual recipes and of ours.

    python benchmarks/public_model.py --model FOLDER --calibration TEXT --evaluation TEXT --results FOLDER 0.5 0.7 2:4

A model is a folder or a hub id; texts are .txt, .jsonl or .parquet files. The workflow itself does all of it, so it
takes hours on a CPU, and the same command goes on where it was stopped. `--only` takes some of the runs, `--tasks` adds
tasks of lm-eval. The first column behind a pattern is the perplexity, the second the excess of its logarithm over the
dense model's, relative to that of ADMM as its authors released it: below 1 is better than that. Hours are of all jobs
that a run needs, shared ones counted in full.
"""

import argparse
import math
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import tables
import yaml  # comes with Snakemake

from gramprune.report.read import Results, read
from gramprune.storage import files

ROOT = Path(__file__).resolve().parents[1]
RELEASED = "admm-released"
RUNS = {
    "magnitude": {"recipe": "magnitude"},
    "wanda": {"recipe": "wanda"},
    "sparsegpt": {"recipe": "sparsegpt"},
    RELEASED: {"mask": {"method": "admm", "schedule": "jump"}, "update": "joint", "granularity": "matrix"},
    "alps": {"recipe": "alps"},
    "fast": {"recipe": "fast"},
    "layers": {"recipe": "best", "reconstruct": "none"},
    "best": {"recipe": "best"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="+", help="such as 0.5 or 2:4")
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True, type=Path)
    parser.add_argument("--evaluation", required=True, type=Path)
    parser.add_argument("--results", required=True, type=Path)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512, help="tokens per sequence and window")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="besides ADMM as released")
    parser.add_argument("--tasks", nargs="*", default=[], help="of lm-eval, 500 items each")
    parser.add_argument("--dtype", default="float32", help="of forward passes; a CPU is slow in bfloat16")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--keep", help="name of a file of results")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    config = arguments.results / "config.yaml"
    config.write_text(yaml.safe_dump(experiment(arguments), sort_keys=False))
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        str(arguments.cores),
        "--configfile",
        str(config.resolve()),
        "--rerun-incomplete",  # of a run that was killed
    ]
    if status := subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(status)
    tables.keep(arguments.keep, *table(read(arguments.results / "results"), arguments.patterns))


def experiment(arguments: argparse.Namespace) -> dict:
    """The configuration."""
    place = lambda path: str(path.resolve())  # noqa: E731
    model = place(Path(arguments.model)) if Path(arguments.model).is_dir() else arguments.model
    runs = [
        {"name": name_of(run, pattern), **without_granularity(RUNS[run], pattern), "sparsity": number(pattern)}
        for run in dict.fromkeys([RELEASED, *arguments.only])
        for pattern in arguments.patterns
    ]
    evaluation = {"datasets": ["evaluation"], "length": arguments.length, "windows": arguments.windows}
    return {
        "model": {"source": model, "name": "model"},
        "datasets": {name: {"path": place(getattr(arguments, name))} for name in ("calibration", "evaluation")},
        "calibration": {"dataset": "calibration", "samples": arguments.samples, "length": arguments.length},
        "evaluation": {"perplexity": evaluation, "tasks": [{"tasks": [t], "limit": 500} for t in arguments.tasks]},
        "dtype": arguments.dtype,
        "results": place(arguments.results / "results"),
        "runs": runs,
    }


def number(pattern: str) -> float | str:
    return pattern if ":" in pattern else float(pattern)


def name_of(run: str, pattern: str) -> str:
    return f"{run}-{pattern.replace(':', 'of')}"


def without_granularity(run: dict, pattern: str) -> dict:
    """N:M has none."""
    return {key: value for key, value in run.items() if key != "granularity" or ":" not in pattern}


def table(results: Results, patterns: list[str]) -> tuple[dict[str, str], list[list]]:
    """Columns with their formats, and rows."""
    found = {row["run"]: row for row in results.rows}
    dense = found["dense"]["perplexity_evaluation"]
    tasks = [name for name in found["dense"] if name.startswith("acc_") and "stderr" not in name]
    forms = {"": ".2f", ", excess": ".2f", ", hours": ".2f", ", MiB": ",.0f", **dict.fromkeys(tasks, ".1%")}
    columns = {"": "", **{f"{pattern}{what}": form for pattern in patterns for what, form in forms.items()}}
    rows = [["dense", *len(patterns) * [dense, 0.0, None, None, *(found["dense"][name] for name in tasks)]]]
    for run in RUNS:
        cells = [run]
        for pattern in patterns:
            row, released = (found.get(name_of(each, pattern)) for each in (run, RELEASED))
            if row is None:
                break
            excess = math.log(row["perplexity_evaluation"] / dense)
            excess /= math.log(released["perplexity_evaluation"] / dense)
            cost = results.cost_of("model", row["run"])
            cells += [row["perplexity_evaluation"], excess, cost["hours"] if cost else None, peak(results, row["run"])]
            cells += [row[name] for name in tasks]
        if len(cells) > 1:
            rows.append(cells)
    return columns, rows


def peak(results: Results, run: str) -> int:
    """MiB of the largest job in a run's own folder of logs."""
    records = (results.folder / "logs" / "model" / run).rglob("*.json")
    return max(files.read_json(path)["host_mb"] for path in records)


if __name__ == "__main__":
    main()
