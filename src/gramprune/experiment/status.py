"""How far an experiment is, and how long the rest will take by the times of what is done."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from gramprune.experiment import pipeline, resources
from gramprune.experiment.measured import Measured, times
from gramprune.experiment.pipeline import Job, Key
from gramprune.experiment.plan import columns
from gramprune.experiment.settings import Settings
from gramprune.progress import duration

AT_ONCE = (1, 4, 16)


def status(settings: Settings, layouts: dict[str, dict[str, Any]]) -> str:
    """The status as text, for people."""
    work = pipeline.jobs(settings, layouts)
    taken = times(Path(settings.results), work)
    done = finished(work, taken)
    left = remaining(work, done, expected(work, taken, settings))
    lines = [f"{len(done):,} of {len(work):,} jobs are done.", ""]
    rows = [["model", "run", "blocks", "next", "checkpoint", "evaluated", "to do"]]
    for model in layouts:
        for run in ("dense", *(run.name for run in settings.runs)):
            rows.append([model, run, *_of_run(work, done, left, model, run)])
    lines += columns(rows)
    if not left:
        return "\n".join([*lines, "", "Everything is done."])
    total = sum(job.need.start for job in left.values())
    walls = ", ".join(f"{duration(pipeline.makespan(left, _start, n))} with {n} at once" for n in AT_ONCE[1:])
    chain, _ = pipeline.longest_chain(left, _start)
    device = resources.likely_device(settings.device).upper()
    how = "by the times of what is done" if taken else f"estimated for one {device}: nothing is done yet"
    lines += ["", f"To do: {duration(total)} of work, {how}; {walls}; never less than {duration(chain)}."]
    lines.append(
        "A changed configuration may make more jobs necessary, and a finished run needs none for deleted files: "
        "`snakemake -n` lists those that will run."
    )
    return "\n".join(lines)


def _start(need: Any) -> float:
    return need.start


def finished(work: dict[Key, Job], taken: dict[Key, Measured]) -> set[Key]:
    """The jobs that are done, after all that they wait for; work comes in that order."""
    done: set[Key] = set()
    for key, job in work.items():
        if key in taken and all(p in done and taken[p].ended <= taken[key].ended for p in job.after):
            done.add(key)
    return done


def expected(work: dict[Key, Job], taken: dict[Key, Measured], settings: Settings) -> dict[Key, float]:
    """Seconds of every job: the estimate, corrected by what jobs of its stage took."""
    device = resources.likely_device(settings.device)
    guess = {key: job.need.seconds(device, settings.threads_at_least) for key, job in work.items()}
    ratios: dict[str, list[float]] = defaultdict(list)
    for key, measured in taken.items():
        ratios[key[0]].append(measured.seconds / guess[key])
    usual = median(ratio for found in ratios.values() for ratio in found) if ratios else 1.0
    return {key: seconds * (median(ratios[key[0]]) if ratios[key[0]] else usual) for key, seconds in guess.items()}


def remaining(work: dict[Key, Job], done: set[Key], seconds: dict[Key, float]) -> dict[Key, Job]:
    """The jobs that are not done, waiting only for each other; `need.start` is the time that each will take."""
    return {
        key: Job(replace(job.need, start=seconds[key]), tuple(parent for parent in job.after if parent not in done))
        for key, job in work.items()
        if key not in done
    }


def _of_run(work: dict[Key, Job], done: set[Key], left: dict[Key, Job], model: str, run: str) -> list[str]:
    """Blocks that are pruned, the job that comes next, checkpoint, evaluations, and the time of what is to do."""
    needed = pipeline.needed(work, model, run)
    ends = [key for key in needed if key[0] in ("perplexity", "tasks")]
    waiting = [key for key in needed if key in left]
    evaluated = f"{sum(key in done for key in ends)} of {len(ends)}"
    time = duration(sum(left[key].need.start for key in waiting)) if waiting else "-"
    step = described(waiting[0]) if waiting else "-"
    if run == "dense":
        return ["-", step, "-", evaluated, time]
    blocks = [key for key in work["assemble", model, run].after if key[0] != "allocate"]
    ready = "yes" if ("assemble", model, run) in done else "no"
    return [f"{sum(key in done for key in blocks)} of {len(blocks)}", step, ready, evaluated, time]


def described(key: Key) -> str:
    """A job in two words."""
    in_block = key[0] in ("capture", "mask", "refine", "update", "reconstruct")
    return f"{key[0]} of block {key[3]}" if in_block else key[0].replace("_", " ")
