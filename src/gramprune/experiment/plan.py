"""What an experiment will take, before anything is downloaded: jobs, memory, disk and time, estimated."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from gramprune.experiment import evaluating, patterns, pipeline
from gramprune.experiment.needs import DEVICES, GIB, Need
from gramprune.experiment.options import OwnTarget
from gramprune.experiment.pipeline import Job, Key
from gramprune.experiment.settings import Settings
from gramprune.model.layout import selected, weights_of
from gramprune.progress import duration

OVERHEAD = 10.0  # seconds that a cluster takes to start and notice the end of a job
DEVICE_COUNTS = (1, 4, 16, 64)


def plan(settings: Settings, layouts: dict[str, dict[str, Any]]) -> str:
    """The plan as text, for people."""
    work = pipeline.jobs(settings, layouts)
    lines = [f"{len(work):,} jobs for {len(settings.runs)} runs of {', '.join(layouts)}. All figures are estimates."]
    header = ["stage", "jobs", "host GiB", "GPU GiB", "disk GiB", *DEVICES]
    lines += [
        "",
        "The largest memory of one job; disk and time of all:",
        "",
        *columns([header, *stages(work, settings)]),
    ]
    lines += sparsities(settings, layouts)
    lines += streamed(settings, layouts)
    kept = kept_bytes(work)
    lines += ["", "Disk at the end: " + ", ".join(f"{size / GIB:,.1f} GiB with keep: {k}" for k, size in kept.items())]
    lines += ["", f"Wall time by the number of devices, with {OVERHEAD:.0f} s per job for a cluster to start it:", ""]
    rows = [["propagation", "device", "all jobs", *(f"{count} at once" for count in DEVICE_COUNTS), "longest chain"]]
    for name, jobs in {"as configured": work, **propagated(settings, layouts)}.items():
        rows += [[name, device, *times(jobs, device, settings.threads_at_least)] for device in DEVICES]
    lines += columns(rows)
    total, chain = pipeline.longest_chain(work, lambda need: seconds(need, "h100", settings.threads_at_least))
    lines += ["", f"The longest chain on h100, {duration(total)}: {described(chain)}."]
    return "\n".join(lines)


def sparsities(settings: Settings, layouts: dict[str, dict[str, Any]]) -> list[str]:
    """What every linear gets of the runs that have not one sparsity for all, and the zeros that makes in all."""
    lines = []
    for model, layout in layouts.items():
        blocks = layout["blocks"]
        names = [selected(block["linears"], settings.exclude) for block in blocks]
        for run in settings.runs:
            if isinstance(run.sparsity, dict) or run.allocated:
                recipes = [pipeline.recipe_of(run, block, layout, settings.exclude) for block in range(len(blocks))]
                zeros = total = 0.0
                for block, recipe in zip(blocks, recipes, strict=True):
                    for name in selected(block["linears"], settings.exclude):
                        size = weights_of(block["linears"][name])
                        pattern = recipe.pattern_of(name)
                        total += size
                        zeros += size * pattern.sparsity if pattern else 0
                share = f"{zeros / total:.2%} of {total:,.0f} weights"
                share += f", before the allocation {run.allocation.method}" if run.allocated else ""
                lines += ["", f"Sparsity of {run.name} in {model}, {share}:"]
                lines += [f"  {line}" for line in patterns.described([each.sparsity for each in recipes], names)]
    return lines


def streamed(settings: Settings, layouts: dict[str, dict[str, Any]]) -> list[str]:
    """The models that are evaluated one block at a time, and what the whole ones would take."""
    lines = []
    whole = settings.evaluation.model_copy(update={"memory": "whole"})
    for model, layout in layouts.items():
        if evaluating.is_streamed(layout, settings):
            one = evaluating.perplexity(layout, settings)
            every = evaluating.perplexity(layout, settings.model_copy(update={"evaluation": whole}))
            text = f"{model} is evaluated one block at a time, with {one.tensors / GIB:,.1f} GiB of tensors"
            lines += ["", f"{text}; the whole model would take {every.tensors / GIB:,.1f} GiB."]
    return lines


def stages(work: dict[Key, Job], settings: Settings) -> list[list[str]]:
    """A row per stage: number of jobs, the largest memory of one, disk and time of all."""
    needs: dict[str, list[Need]] = defaultdict(list)
    for key, job in work.items():
        needs[key[0]].append(job.need)
    rows = []
    for stage, found in [*needs.items(), ("total", [job.need for job in work.values()])]:
        host = max(need.host(settings.device.partition(":")[0]) for need in found)
        gpu = max(need.gpu() for need in found)
        sizes = [f"{host / GIB:.1f}", f"{gpu / GIB:.1f}" if gpu else "-", f"{sum(n.disk for n in found) / GIB:,.1f}"]
        spent = [duration(sum(need.seconds(device, settings.threads_at_least) for need in found)) for device in DEVICES]
        rows.append([stage, f"{len(found):,}", *sizes, *spent])
    return rows


def times(work: dict[Key, Job], device: str, threads: int) -> list[str]:
    """Time of all jobs, wall time for every number of devices, and time of the longest chain."""

    def each(need: Need) -> float:
        return seconds(need, device, threads)

    total = sum(each(job.need) for job in work.values())
    walls = [pipeline.makespan(work, each, count) for count in DEVICE_COUNTS]
    return [duration(time) for time in (total, *walls, pipeline.longest_chain(work, each)[0])]


def seconds(need: Need, device: str, threads: int) -> float:
    """Of one job on a cluster."""
    return need.seconds(device, threads) + OVERHEAD


def kept_bytes(work: dict[Key, Job]) -> dict[str, float]:
    """Bytes on disk at the end, by what `keep` says."""
    needs = [job.need for job in work.values()]
    everything, passing = sum(need.disk for need in needs), sum(need.passing for need in needs)
    scratch = sum(need.scratch for need in needs)
    return {"all": everything, "gram": everything - passing, "results": everything - passing - scratch}


def propagated(settings: Settings, layouts: dict[str, dict[str, Any]]) -> dict[str, dict[Key, Job]]:
    """The jobs of the same runs with either propagation, where that differs; a target that needs the other goes."""
    found = {}
    for propagation in ("pruned", "dense"):
        changes: dict[str, Any] = {"propagation": propagation}
        if propagation == "dense":
            changes["target"] = OwnTarget(method="own")
        runs = [run.model_copy(update=changes) for run in settings.runs]
        if runs != settings.runs:
            found[f"all {propagation}"] = pipeline.jobs(settings.model_copy(update={"runs": runs}), layouts)
    return found


def described(chain: list[Key]) -> str:
    """The stages of a chain in the order of their first jobs, with how many there are."""
    counts = Counter(key[0] for key in chain)
    return ", ".join(f"{stage} × {count}" if count > 1 else stage for stage, count in counts.items())


def columns(rows: list[list[str]]) -> list[str]:
    """Rows as lines with aligned columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
