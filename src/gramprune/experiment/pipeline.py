"""The jobs that an experiment consists of, and which wait for which: the workflow's graph without the workflow."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from gramprune.experiment import evaluating, resources
from gramprune.experiment.needs import Need
from gramprune.experiment.run import Run
from gramprune.experiment.settings import Settings
from gramprune.model.demo import DEMOS
from gramprune.model.layout import selected

Key = tuple[Any, ...]
"""A job: its stage, and what tells it from others of that stage."""


@dataclass(frozen=True)
class Job:
    """What a job needs, and the jobs that must be done before."""

    need: Need
    after: tuple[Key, ...] = ()


def trail_of(run: Run, block: int) -> str:
    """Where the activations come from that this run's block sees: `dense`, or the run that pruned the blocks before."""
    return "dense" if block == 0 or run.propagation == "dense" else run.name


def shared_of(layout: dict[str, Any], block: int, exclude: list[str]) -> dict[str, list[int]]:
    """The linears that a block and others work with, by name: the numbers of all these blocks. The first prunes it."""
    shared = layout["blocks"][block]["shared"]
    return {name: shared[name] for name in selected(shared, exclude)}


def summed_over(layout: dict[str, Any], block: int, exclude: list[str]) -> list[int]:
    """The blocks whose Gram matrices, of the dense model, are summed for what a block prunes for itself and others."""
    shared = shared_of(layout, block, exclude).values()
    return sorted({each for blocks in shared if blocks[0] == block for each in blocks})


def owners_of(layout: dict[str, Any], block: int, exclude: list[str]) -> list[int]:
    """The earlier blocks that prune what a block works with."""
    return sorted({blocks[0] for blocks in shared_of(layout, block, exclude).values()} - {block})


def watched(layout: dict[str, Any], trail: str, block: int, exclude: list[str]) -> dict[str, Any]:
    """What a capture is told of its block: `linears` whose inputs it looks at, and which of them are `shared`.

    These it looks at in the dense model only: when the first block is pruned, a run's later blocks have no inputs yet.
    """
    own, shared = selected(layout["blocks"][block]["linears"], exclude), shared_of(layout, block, exclude)
    if trail != "dense":
        return {"linears": [name for name in own if name not in shared]}
    return {"linears": list(dict.fromkeys([*own, *shared])), **({"shared": shared} if shared else {})}


def recipe_of(
    run: Run,
    block: int,
    layout: dict[str, Any],
    exclude: list[str],  # linears that stay dense in all runs
) -> Run:
    """A run as one block of a model sees it: with the sparsity of the linears there, and the target."""
    blocks = layout["blocks"]
    linears = selected(blocks[block]["linears"], exclude)
    return run.at(block, len(blocks), linears, dense_inputs=trail_of(run, block) == "dense")


def recipes(settings: Settings, layouts: dict[str, dict[str, Any]]) -> Iterator[Run]:
    """Every run as every block of every model sees it."""
    for layout in layouts.values():
        for run in settings.runs:
            for block in range(len(layout["blocks"])):
                yield recipe_of(run, block, layout, settings.exclude)


def fractions_of(run: Run, layout: dict[str, Any], exclude: list[str]) -> list[dict[str, float]]:
    """By block and linear, the fractions of zeros that a run has without its allocation; not of N:M, nor of dense."""
    found = []
    for block in range(len(layout["blocks"])):
        recipe = recipe_of(run, block, layout, exclude)
        given = {name: recipe.pattern_of(name) for name in selected(layout["blocks"][block]["linears"], exclude)}
        found.append({name: each.sparsity for name, each in given.items() if each and not each.group})
    return found


def allocation_settings(run: Run, layout: dict[str, Any], exclude: list[str]) -> dict[str, Any]:
    """All that a run's allocation depends on, besides weights, Gram matrices and its file."""
    return {**run.allocation_settings, "blocks": fractions_of(run, layout, exclude)}


def jobs(settings: Settings, layouts: dict[str, dict[str, Any]]) -> dict[Key, Job]:
    """Every job once, however many runs share it, in an order in which they could be done."""
    found: dict[Key, Job] = {("fetch_data", name): Job(resources.fetch_data()) for _, name in settings.dataset_uses}
    found |= {("fetch_tasks", name): Job(resources.fetch_tasks()) for name in settings.tasks}
    evaluated: list[Key] = []
    trained = {model.name: DEMOS.get(model.source) for model in settings.model}
    for model, layout in layouts.items():
        found["fetch_model", model] = Job(resources.fetch_model(layout, trained[model]))
        tokens = ("calibrate", model)
        parents = (("fetch_model", model), *(("fetch_data", name) for name in settings.calibration.shares))
        found[tokens] = Job(resources.calibrate(layout, settings), parents)
        for block in range(_dense_blocks(settings, layout)):
            before = ("capture", model, "dense", block - 1) if block else tokens
            found["capture", model, "dense", block] = Job(resources.capture(layout, settings, block), (before,))
        for run in settings.runs:
            found |= {key: job for key, job in _pruning(settings, model, layout, run).items() if key not in found}
        for run in ("dense", *(run.name for run in settings.runs)):
            checkpoint = ("fetch_model", model) if run == "dense" else ("assemble", model, run)
            for text in settings.evaluation.perplexity.datasets:
                key = ("perplexity", model, run, text.dataset)
                found[key] = Job(evaluating.perplexity(layout, settings), (checkpoint, ("fetch_data", text.dataset)))
                evaluated.append(key)
            for name in settings.tasks:
                key = ("tasks", model, run, name)
                found[key] = Job(evaluating.tasks(layout, settings, name), (checkpoint, ("fetch_tasks", name)))
                evaluated.append(key)
    found[("summary",)] = Job(resources.summary(), tuple(evaluated))
    found[("report",)] = Job(resources.report(), (("summary",),))
    return found


def threads(settings: Settings, layouts: dict[str, dict[str, Any]], cores: int) -> int:
    """CPU threads of every job: where none are set, the cores are divided among the jobs that can run side by side.

    A run that prunes block after block has one job at a time; those on the dense model's activations have many.
    """
    if settings.threads != "auto":
        return settings.threads
    at_once = len(layouts) * sum(run.propagation == "pruned" for run in settings.runs)
    for layout in layouts.values():
        at_once += any(run.sees_dense for run in settings.runs)
        at_once += len(layout["blocks"]) * any(run.propagation == "dense" for run in settings.runs)
    return max(1, cores // at_once)


def _dense_blocks(settings: Settings, layout: dict[str, Any]) -> int:
    """How many blocks of the dense model are captured: for chains the first, or all up to the last that shares."""
    count = len(layout["blocks"])
    if any(run.sees_dense or run.from_grams for run in settings.runs):
        return count
    return 1 + max((each for block in range(count) for each in summed_over(layout, block, settings.exclude)), default=0)


def _pruning(settings: Settings, model: str, layout: dict[str, Any], run: Run) -> dict[Key, Job]:
    """The jobs of one run, up to its checkpoint."""
    found: dict[Key, Job] = {}
    pruned: list[Key] = []
    allocation: list[Key] = [("allocate", model, run.allocation_slug)] if run.allocated else []
    if allocation:
        grams = [("capture", model, "dense", block) for block in range(len(layout["blocks"]))]
        before = grams if run.from_grams else [("calibrate", model)]
        found[allocation[0]] = Job(resources.allocate(layout, settings, run), tuple(before))
    for block in range(len(layout["blocks"])):
        trail, recipe = trail_of(run, block), recipe_of(run, block, layout, settings.exclude)
        last: Key = ("capture", model, trail, block)
        sums: list[Key] = [("capture", model, "dense", each) for each in summed_over(layout, block, settings.exclude)]
        shared = [key for key in sums if key != last]
        if trail != "dense":
            before = [("capture", model, trail_of(run, block - 1), block - 1), pruned[-1]]
            before += [pruned[owner] for owner in owners_of(layout, block - 1, settings.exclude)]
            dense = [("capture", model, "dense", block)] * run.retargeted
            found[last] = Job(resources.capture(layout, settings, block, run.retargeted, False), (*before, *dense))
        if not run.joint:
            need, before = resources.mask(layout, settings, block, recipe), last
            last = ("mask", model, trail, block, recipe.mask_slug)
            found[last] = Job(need, (before, *shared, *allocation))
        if run.refined:
            need, before = resources.refine(layout, settings, block, recipe), last
            last = ("refine", model, trail, block, recipe.final_mask)
            found[last] = Job(need, (before, *shared, *allocation))
        if run.updated:
            need, before = resources.update(layout, settings, block, recipe), last
            last = ("update", model, run.name, block)
            found[last] = Job(need, (before, *shared, *(allocation if run.joint else ())))
        if run.reconstructed:
            trails = {trail: None, **({"dense": None} if run.follows_dense else {})}
            before = [last, *(("capture", model, name, block) for name in trails)]
            before += [pruned[owner] for owner in owners_of(layout, block, settings.exclude)]
            last = ("reconstruct", model, run.name, block)
            found[last] = Job(resources.reconstruct(layout, settings, block, run), tuple(before))
        pruned.append(last)
    found["assemble", model, run.name] = Job(resources.assemble(layout, settings), (*pruned, *allocation))
    return found


def needed(work: dict[Key, Job], model: str, run: str) -> list[Key]:
    """The jobs without which a run's figures cannot be had, shared or its own, in the order of `work`."""
    found: set[Key] = set()
    queue = [key for key in work if key[0] in ("perplexity", "tasks") and key[1:3] == (model, run)]
    while queue:
        key = queue.pop()
        if key not in found:
            found.add(key)
            queue.extend(work[key].after)
    return [key for key in work if key in found]


Seconds = Callable[[Need], float]


def longest_chain(work: dict[Key, Job], seconds: Seconds) -> tuple[float, list[Key]]:
    """Seconds of the longest chain of jobs that wait for each other, and the chain: no number of devices beats it."""
    ends: dict[Key, float] = {}
    behind: dict[Key, Key | None] = {}
    for key, job in work.items():
        before = behind[key] = max(job.after, key=ends.__getitem__, default=None)
        ends[key] = seconds(job.need) + (0.0 if before is None else ends[before])
    last: Key | None = max(ends, key=ends.__getitem__)
    total, chain = max(ends.values()), []
    while last is not None:
        chain.append(last)
        last = behind[last]
    return total, chain[::-1]


def makespan(work: dict[Key, Job], seconds: Seconds, devices: int) -> float:
    """Wall time with so many devices, each busy with one job that has work for it; other jobs run beside them.

    Of the jobs that can start, the one with the longest way to the end does.
    """
    followers: dict[Key, list[Key]] = defaultdict(list)
    for key, job in work.items():
        for parent in job.after:
            followers[parent].append(key)
    times = {key: seconds(job.need) for key, job in work.items()}
    tails: dict[Key, float] = {}
    for key in reversed(work):
        tails[key] = times[key] + max((tails[follower] for follower in followers[key]), default=0.0)
    waiting = Counter({key: len(job.after) for key, job in work.items()})
    order = {key: number for number, key in enumerate(work)}
    ready: list[tuple[float, int, Key]] = []
    running: list[tuple[float, int, Key]] = []
    free, now = devices, 0.0

    def start(key: Key) -> None:
        heappush(running, (now + times[key], order[key], key))

    def arrive(key: Key) -> None:
        if work[key].need.accelerated:
            heappush(ready, (-tails[key], order[key], key))
        else:
            start(key)

    for key, job in work.items():
        if not job.after:
            arrive(key)
    while running or ready:
        while ready and free:
            free -= 1
            start(heappop(ready)[2])
        now, _, done = heappop(running)
        free += work[done].need.accelerated
        for follower in followers[done]:
            waiting[follower] -= 1
            if not waiting[follower]:
                arrive(follower)
    return now
