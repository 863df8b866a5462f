"""What it costs to prune in stages: wall time and peak memory against the same methods in one process.

    python benchmarks/overhead.py --model FOLDER --calibration TEXT --evaluation TEXT

Why: a job per stage and block makes the workflow restartable and lets it use a cluster; on one machine every job
starts a Python and imports torch, and hidden states go through files. To reach: at most 25 % more wall time for eight
runs, with less memory per process.

How: eight recipes by the papers' protocol, pruned and evaluated (a) by one process after the other, with as many
threads as there are cores, the model in memory, no file written; (b) by `snakemake --cores N` with jobs of one thread.
Both use the same functions of the library. The results must agree: one process sums in another order, so to 1 %.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import yaml  # comes with Snakemake
from dag import clone

RECIPES = [("magnitude", "none"), ("wanda", "none"), ("wanda", "admm"), ("admm", "joint")]
PATTERNS = ["0.5", "2:4"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--calibration", required=True, type=Path)
    parser.add_argument("--evaluation", required=True, type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=400)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return one_process(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        started = time.perf_counter()
        staged(folder, arguments)
        apart = time.perf_counter() - started
        logs = [path.read_text() for path in (folder / "results" / "logs").rglob("*.log")]
        peak = max(int(text.rpartition("peak memory ")[2].split()[0]) for text in logs if "peak memory" in text)
        print((folder / "results" / "summary.csv").read_text())
        spent = [re.search(r"start-up ([\d.]+) s, work ([\d.]+) s", text) for text in logs]
        starting, working = (sum(float(found[i]) for found in spent if found) for i in (1, 2))
    started = time.perf_counter()
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(arguments.cores)})
    together = time.perf_counter() - started
    whole = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"one process, {arguments.cores} threads: {together:.1f} s, peak {whole} MiB (with Snakemake's children)")
    print(f"staged, {arguments.cores} cores, {len(logs)} jobs: {apart:.1f} s, the largest job {peak} MiB")
    print(f"of the jobs' {starting + working:.0f} s, {starting:.0f} s were start-up of processes and imports")
    print(f"staged takes {apart / together:.2f} × the time")


def staged(folder: Path, arguments: argparse.Namespace) -> None:
    clone(folder)
    config = {
        "model": str(arguments.model.resolve()),
        "datasets": {name: {"path": str(getattr(arguments, name).resolve())} for name in ("calibration", "evaluation")},
        "calibration": {"dataset": "calibration", "samples": arguments.samples, "length": arguments.length},
        "evaluation": {
            "perplexity": {"datasets": ["evaluation"], "length": arguments.length, "windows": arguments.windows}
        },
        "dtype": "float32",
        "device": "cpu",
        "runs": [
            {"sparsity": float(pattern) if "." in pattern else pattern, "mask": mask, "update": update}
            for pattern in PATTERNS
            for mask, update in RECIPES
        ],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", "snakemake", "--cores", str(arguments.cores)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-4000:])


def one_process(arguments: argparse.Namespace) -> None:
    from recipes import perplexities

    import gramprune as gp

    needed = SimpleNamespace(**vars(arguments), device="cpu", only="", skip=None)
    recipes = [(mask, "none", update, "own") for mask, update in RECIPES]
    rows = perplexities(needed, [gp.Pattern.parse(text) for text in PATTERNS], recipes, [arguments.samples])
    print(rows)


if __name__ == "__main__":
    main()
