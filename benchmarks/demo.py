"""What the demo experiment takes, and how much of it is starting processes instead of working.

    python benchmarks/demo.py                      runs config.yaml in a fresh copy: some minutes
    python benchmarks/demo.py --busy               the same twice, the second time with another program on one core
    python benchmarks/demo.py --no-hooks           without a warm process: every job imports what it needs
    python benchmarks/demo.py FOLDER               only analyses a finished run: the folder that holds its results

Why: every stage of every block is a process of its own, which is what makes the workflow restartable. The price is the
start of processes, which a warm process (workflow/scripts/warm.py) keeps low on one machine.

Start-up is from the begin of a job's process to that of its stage, by the job's own record; what a stage imports while
it works counts as work. The rest is Snakemake's own start and scheduling, and idle cores. A FOLDER's wall time is from
its Snakemake log; a run in several commands has several, which are added up.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from dag import ROOT, clone

from gramprune.storage import files

CORES = 2
ELAPSED = re.compile(r"^Elapsed time: (?:(\d+) days?, )?(\d+):(\d+):([\d.]+)$", re.MULTILINE)


def main() -> None:
    options = [text for text in sys.argv[1:] if text.startswith("-")]
    if len(sys.argv) > 1 and not options:
        analyse(Path(sys.argv[1]), None)
        return
    busy = "--busy" in options
    quiet = measure([option for option in options if option != "--busy"])
    if busy:
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            loaded = measure([])
        finally:
            other.kill()
        print(f"\nwith another program on one of {CORES} cores: {loaded:.1f} s, {loaded / quiet:.2f} times as long")


def measure(options: list[str]) -> float:
    """Run the experiment in a fresh copy, print its table, and return its wall time in seconds."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clone(folder)
        (folder / "config.yaml").write_bytes((ROOT / "config.yaml").read_bytes())
        started = time.perf_counter()
        command = [sys.executable, "-m", "snakemake", "--profile", str(ROOT / "local"), "--cores", str(CORES), *options]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        wall = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"snakemake failed:\n{done.stderr[-4000:]}")
        analyse(folder, wall)
    return wall


def analyse(folder: Path, wall: float | None) -> None:
    """Print the table. wall: seconds, or None to take them from Snakemake's logs."""
    jobs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for path in sorted((folder / "results" / "logs").rglob("*.json")):
        taken = files.read_json(path)
        jobs[rule_of(path)].append((taken["start_seconds"], taken["seconds"] - taken["start_seconds"]))
    if not jobs:
        sys.exit(f"{folder}: no finished job in results/logs")
    if wall is None:
        wall = sum(map(elapsed, sorted((folder / ".snakemake" / "log").glob("*.snakemake.log"))))
    if not wall:
        sys.exit(f"{folder}: no Snakemake log of a finished run, which says how long it took")
    print(f"wall time {wall:.1f} s on {CORES} cores, {sum(map(len, jobs.values()))} jobs\n")
    columns = ["jobs", "start-up", "work", "start-up, sum", "work, sum"]
    print(f"{'rule; means in s':18}" + "".join(f"{text:>16}" for text in columns))
    starts = works = 0.0
    for rule, times in sorted(jobs.items(), key=lambda item: -len(item[1])):
        start, work = zip(*times, strict=True)
        row = [str(len(times)), f"{mean(start):.2f}", f"{mean(work):.2f}", f"{sum(start):.1f}", f"{sum(work):.1f}"]
        print(f"{rule:18}" + "".join(f"{text:>16}" for text in row))
        starts, works = starts + sum(start), works + sum(work)
    machine = CORES * wall
    print(f"\nstart-up {starts:.1f} s, work {works:.1f} s")
    print(f"start-up is {100 * starts / machine:.1f} % of {CORES} cores × wall time ({machine:.1f} s)")
    print(f"start-up is {100 * starts / (starts + works):.1f} % of all job seconds ({starts + works:.1f} s)")
    print(f"rest (Snakemake, idle cores, ends of processes): {100 * (1 - (starts + works) / machine):.1f} %")
    print("Job seconds are wall time of processes: where jobs disturb each other, both figures of a job grow.")


def rule_of(path: Path) -> str:
    """The rule that left a record, from its place: block folders hold `capture`, `mask_<slug>` and `update`."""
    if path.parent.name == "data":
        return "fetch_tasks" if path.stem.startswith("tasks_") else "fetch_data"
    known = ("mask", "refine", "perplexity", "tasks")
    return next((rule for rule in known if path.stem.startswith(f"{rule}_")), path.stem)


def elapsed(path: Path) -> float:
    """Seconds of a Snakemake command that ran jobs, from its log; 0 for one that did not."""
    found = ELAPSED.search(path.read_text(encoding="utf-8"))
    if not found:
        return 0.0
    days, hours, minutes, seconds = found.groups()
    return 86400 * int(days or 0) + 3600 * int(hours) + 60 * int(minutes) + float(seconds)


if __name__ == "__main__":
    main()
