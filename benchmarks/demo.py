"""What the demo experiment takes, and how much of it is starting processes instead of working.

    python benchmarks/demo.py                      runs config.yaml in a fresh copy: some minutes
    python benchmarks/demo.py FOLDER               only analyses a finished run: the folder that holds its results

Why: every stage of every block is a process of its own, which is what makes the workflow restartable; the price is
that each imports torch again. Here is that price, against the work in the same run.

Every log ends with "start-up X s, work Y s, …", measured by workflow/scripts/job.py from the process' begin to the end
of the stage's imports, and from there. That alone would flatter: some stages import more when they work, which is still
start-up. Those imports are measured here, in fresh interpreters, and moved from work to start-up. Not in either
figure: Snakemake's own start and scheduling, and a process' end; in the table they are part of the rest.

A FOLDER's wall time is from its Snakemake log; a run in several commands has several, which are added up. Imports
are measured now, on this machine: analyse a run where it was made.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from dag import ROOT, clone

CORES = 2
LLAMA = "transformers.models.llama.modeling_llama"
TOKENIZER = "transformers.PreTrainedTokenizerFast"  # a name of a lazy module counts as an import
# What a rule's stage has imported when its clock for work starts, and what it imports after that.
LATER = {
    "capture": ("gramprune.stages.capture", [LLAMA]),
    "perplexity": ("gramprune.stages.evaluate", [TOKENIZER, LLAMA, "pyarrow.parquet"]),
    "calibrate": ("gramprune.stages.calibrate", [TOKENIZER, "pyarrow.parquet"]),
    "demo_model": ("gramprune.stages.fetch", ["gramprune.demo", "torch", TOKENIZER, LLAMA]),
    "fetch_data": ("gramprune.stages.fetch", ["gramprune.demo", "pyarrow.parquet"]),
    "report": ("gramprune.stages.report", ["altair", "vl_convert"]),
}
FINE = re.compile(r"start-up ([\d.]+) s, work ([\d.]+) s, peak memory", re.MULTILINE)
ELAPSED = re.compile(r"^Elapsed time: (?:(\d+) days?, )?(\d+):(\d+):([\d.]+)$", re.MULTILINE)


def main() -> None:
    if len(sys.argv) > 1:
        analyse(Path(sys.argv[1]), None)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clone(folder)
        (folder / "config.yaml").write_bytes((ROOT / "config.yaml").read_bytes())
        started = time.perf_counter()
        command = [sys.executable, "-m", "snakemake", "--cores", str(CORES)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        wall = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"snakemake failed:\n{done.stderr[-4000:]}")
        analyse(folder, wall)


def analyse(folder: Path, wall: float | None) -> None:
    """Print the table. wall: seconds, or None to take them from Snakemake's logs."""
    logs = sorted((folder / "results" / "logs").rglob("*.log"))
    jobs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for path in logs:
        found = FINE.findall(path.read_text(encoding="utf-8"))
        if found:
            jobs[rule_of(path)].append((float(found[-1][0]), float(found[-1][1])))
    if not jobs:
        sys.exit(f"{folder}: no finished job in results/logs")
    if wall is None:
        wall = sum(map(elapsed, sorted((folder / ".snakemake" / "log").glob("*.snakemake.log"))))
    if not wall:
        sys.exit(f"{folder}: no Snakemake log of a finished run, which says how long it took")
    later = {rule: import_seconds(*LATER[rule]) for rule in jobs if rule in LATER}
    print(f"wall time {wall:.1f} s on {CORES} cores, {sum(map(len, jobs.values()))} jobs with a log\n")
    columns = ["jobs", "start-up", "of it late", "work", "start-up : work", "start-up, sum"]
    print(f"{'rule; means in s':18}" + "".join(f"{text:>16}" for text in columns))
    starts = works = late = 0.0
    for rule, times in sorted(jobs.items(), key=lambda item: -len(item[1])):
        # Not more than a job's work: on a busy machine the import measured now may be the slower one.
        moved = [min(later.get(rule, 0.0), work) for _, work in times]
        start = [seconds + extra for (seconds, _), extra in zip(times, moved, strict=True)]
        work = [seconds - extra for (_, seconds), extra in zip(times, moved, strict=True)]
        means = [statistics.mean(values) for values in (start, moved, work)]
        ratio = f"{means[0] / means[2]:.2f}" if means[2] > 0.005 else "-"
        row = [str(len(times)), *(f"{mean:.2f}" for mean in means), ratio, f"{sum(start):.1f}"]
        print(f"{rule:18}" + "".join(f"{text:>16}" for text in row))
        starts, works, late = starts + sum(start), works + sum(work), late + sum(moved)
    machine = CORES * wall
    print(f"\nstart-up {starts:.1f} s ({late:.1f} s of it late imports, measured now), work {works:.1f} s")
    print(f"start-up is {100 * starts / machine:.1f} % of {CORES} cores × wall time ({machine:.1f} s)")
    print(f"start-up is {100 * starts / (starts + works):.1f} % of all job seconds ({starts + works:.1f} s)")
    print(f"rest (Snakemake, idle cores, ends of processes): {100 * (1 - (starts + works) / machine):.1f} %")
    print("Job seconds are wall time of processes: where jobs disturb each other, both figures of a job grow.")


def rule_of(path: Path) -> str:
    """The rule that wrote a log, from its place: block folders hold `capture`, `mask_<slug>` and `update`."""
    if path.parent.name == "data":
        return "fetch_data"
    return next((rule for rule in ("mask", "refine", "perplexity") if path.stem.startswith(f"{rule}_")), path.stem)


def elapsed(path: Path) -> float:
    """Seconds of a Snakemake command that ran jobs, from its log; 0 for one that did not."""
    found = ELAPSED.search(path.read_text(encoding="utf-8"))
    if not found:
        return 0.0
    days, hours, minutes, seconds = found.groups()
    return 86400 * int(days or 0) + 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def import_seconds(first: str, then: list[str], repeats: int = 3) -> float:
    """Median of the seconds that the imports of `then` take in a fresh interpreter that has imported `first`."""
    program = f"""
import gc, sys, time
from importlib import import_module
sys.path.insert(0, {str(ROOT / "src")!r})
import_module({first!r})
started = time.perf_counter()
for name in {then!r}:
    module, _, leaf = name.rpartition(".")
    getattr(import_module(module), leaf) if leaf[:1].isupper() else import_module(name)
print(time.perf_counter() - started)
"""
    once = [sys.executable, "-c", program]
    return statistics.median(float(subprocess.check_output(once, text=True)) for _ in range(repeats))


if __name__ == "__main__":
    main()
