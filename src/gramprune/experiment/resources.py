"""What every stage needs, from a model's config.json alone: memory, disk and time. Estimates, and checked as such.

Memory is what the stage's code holds at its peak: the rules ask a scheduler for it. Times are those of floating-point
operations and of bytes moved, at a share of what the device's data sheet promises: good for planning, to within a
factor of two or three. `benchmarks/resources.py` compares both with real jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from gramprune import machine
from gramprune.experiment.needs import DEVICES, GIB, MIB, Need
from gramprune.experiment.run import Run
from gramprune.experiment.settings import Settings
from gramprune.model.demo import Demo
from gramprune.model.layout import parameters_of, selected

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

# Measured, bytes: a process that has imported what a stage imports.
PYTHON, TORCH, TRANSFORMERS = 110 * MIB, 240 * MIB, 370 * MIB
SNAKEMAKE = 350 * MIB  # the two Snakemakes that run a job on a cluster, which count as the job's memory
BATCH = 32 * MIB  # rows that the methods work on at a time, see numerics; on a GPU they take what is free
EVALUATION_DATA = 100 * MIB  # texts and tokens
TOKENISING = 350 * MIB  # more for as much text as is tokenised at once, two megabytes
LM_EVAL = 130 * MIB  # what it imports beside transformers
TRAINING_TEXT = 300 * MIB  # an embedded model's, while its tokenizer is trained


@dataclass(frozen=True)
class Shape:
    """A linear."""

    rows: int
    columns: int
    input: str
    experts: int = 1
    active: float = 1.0  # how many of the experts a token goes to
    grams: int = 1  # how many Gram matrices they have
    uses: int = 1  # how many blocks work with it; their Gram matrices are summed


def shapes(layout: dict[str, Any], settings: Settings, block: int) -> list[Shape]:
    """The linears of a block that may be pruned, every expert as one."""
    return [shape for shape in _named(layout, settings, block).values() for _ in range(shape.experts)]


def watched(layout: dict[str, Any], settings: Settings, block: int, dense: bool = True) -> list[Shape]:
    """The linears of a block whose inputs are looked at; what several blocks work with only in the dense model."""
    if not dense:
        return [shape for shape in shapes(layout, settings, block) if shape.uses == 1]
    shared = layout["blocks"][block]["shared"]
    owners = {blocks[0] for blocks in shared.values()} - {block}
    others = [shape for each in owners for name, shape in _named(layout, settings, each).items() if name in shared]
    return shapes(layout, settings, block) + others


def _named(layout: dict[str, Any], settings: Settings, block: int) -> dict[str, Shape]:
    linears, shared = layout["blocks"][block]["linears"], layout["blocks"][block]["shared"]
    every = settings.calibration.experts == "all"
    found = {}
    for name in selected(linears, settings.exclude):
        shape = Shape(**linears[name])
        alike = every and shape.columns == layout["width"]  # all experts' inputs are all hidden states
        active = shape.experts if every else shape.active
        uses = len(shared.get(name, [block]))
        found[name] = replace(shape, active=active, grams=1 if alike else shape.experts, uses=uses)
    return found


def inputs(linears: Iterable[Shape]) -> list[int]:
    """The widths of the linears' distinct inputs."""
    distinct = {linear.input: linear for linear in linears}.values()
    return [linear.columns for linear in distinct for _ in range(linear.grams)]


def products(linears: Iterable[Shape]) -> float:
    """Multiplications with which one token adds to its Gram matrices."""
    distinct = {linear.input: linear for linear in linears}.values()
    return sum(min(linear.active, linear.grams) * linear.columns**2 for linear in distinct)


def model_bytes(layout: dict[str, Any]) -> float:
    """Of the checkpoint."""
    return BYTES[layout["dtype"]] * (layout["head"] + layout["outside"] + sum(map(parameters_of, layout["blocks"])))


def likely_device(wanted: str) -> str:
    """Which of `DEVICES` jobs will have here, by the setting `device`: another GPU counts as an A100."""
    gpu = machine.gpu()
    if wanted == "cpu" or (wanted == "auto" and gpu is None):
        return "cpu"
    return next((name for name in DEVICES if name in (gpu or "").lower()), "a100")


def on(settings: Settings) -> str:
    """What jobs will compute on here: cpu or cuda."""
    return "cpu" if likely_device(settings.device) == "cpu" else "cuda"


def fetch_model(layout: dict[str, Any], trained: Demo | None = None) -> Need:
    """Download a checkpoint, or train an embedded one on one core."""
    size = model_bytes(layout)
    if trained:
        return Need(TRANSFORMERS + TRAINING_TEXT, disk=size, start=trained.seconds)
    return Need(PYTHON + 100 * MIB, disk=size, fetched=size)


def fetch_data() -> Need:
    """Texts as Parquet."""
    return Need(PYTHON + EVALUATION_DATA, disk=EVALUATION_DATA / 10, fetched=EVALUATION_DATA)


def fetch_tasks() -> Need:
    """Items of tasks, and lm-eval's definitions of them."""
    return Need(TRANSFORMERS + LM_EVAL + EVALUATION_DATA, disk=MIB, fetched=EVALUATION_DATA, start=30.0)


def calibrate(layout: dict[str, Any], settings: Settings) -> Need:
    """Calibration tokens."""
    return Need(TRANSFORMERS + EVALUATION_DATA + TOKENISING, disk=8 * tokens(settings), start=4.0)


def tokens(settings: Settings) -> int:
    """Calibration tokens of one model."""
    return settings.calibration.samples * settings.calibration.length


def hidden_bytes(layout: dict[str, Any], settings: Settings) -> float:
    """What enters one block: hidden states, and what else earlier blocks have left."""
    return tokens(settings) * layout["flow"] * width(layout, settings, on(settings))


def gram_bytes(
    layout: dict[str, Any], settings: Settings, block: int, crossed: bool = False, dense: bool = True
) -> float:
    """The Gram matrices of a block, as stored, of the dense model or a run; with cross-Gram matrices if `crossed`."""
    return 4.0 * (1 + crossed) * sum(n * n for n in inputs(watched(layout, settings, block, dense)))


def width(layout: dict[str, Any], settings: Settings, device: str, dtype: str | None = None) -> int:
    """Bytes of an element in a forward pass on "cpu" or "cuda", as this machine's CPU would choose it."""
    dtype = dtype or settings.dtype
    if dtype != "auto":
        return BYTES[dtype]
    half = layout["dtype"] in ("bfloat16", "float16")
    return 4 if half and device == "cpu" and not machine.multiplies(layout["dtype"]) else BYTES[layout["dtype"]]


def capture(layout: dict[str, Any], settings: Settings, block: int, crossed: bool = False, dense: bool = True) -> Need:
    """Hidden states and Gram matrices of a block: passes of one or two blocks, and XᵀX of every distinct input.

    dense: of the dense model, not of a run.
    """
    linears, length = watched(layout, settings, block, dense), settings.calibration.length
    widths = inputs(linears) or [0]  # all of a block's may be excluded
    parameters = max(b["parameters"] for b in layout["blocks"][max(0, block - 1) : block + 1])
    outside = layout["outside"] - (layout["spared"] if block else 0)
    # Hidden states in and out, distinct inputs, what linears give; and one input in the Gram matrix's dtype.
    given = sum(linear.rows * linear.active / linear.experts for linear in linears)
    seen = sum(s.active * s.columns for s in {linear.input: linear for linear in linears}.values())
    summed = BYTES[settings.calibration.accumulate] * (1 + crossed)
    grams = gram_bytes(layout, settings, block, crossed, dense)
    every = summed * sum(n * n for n in widths)
    held = min(every, max(GIB * settings.calibration.gram_memory, summed * max(widths) ** 2))
    passes = (1 if block == 0 else 2) + crossed + (ceil(every / held) - 1 if held else 0)
    hidden = hidden_bytes(layout, settings)

    def tensors(device: str) -> float:
        size, batch = width(layout, settings, device), machine.batch(settings.batch_size, length, device) * length
        per_token = size * (2 * layout["width"] + seen * (1 + crossed) + given) + summed * max(widths)
        return size * (outside + parameters) + held + batch * per_token

    size = width(layout, settings, on(settings))
    batch = machine.batch(settings.batch_size, length, "cuda") * length
    return Need(
        TRANSFORMERS,
        tensors=tensors("cpu"),
        gpu_tensors=tensors("cuda"),
        staging=max(size * outside, 4.0 * max(widths) ** 2, 2 * batch * layout["width"] * size),
        disk=hidden + grams,
        passing=hidden,
        scratch=grams,
        read=(passes + crossed) * hidden + size * (outside + 2 * parameters),
        half=2.0 * passes * parameters * tokens(settings),
        full=2.0 * (1 + crossed) * tokens(settings) * products(linears),
        accelerated=True,
        start=4.0,
    )


@dataclass(frozen=True)
class Cost:
    """What a method holds and does beyond one Gram matrix and one weight, per linear (out, in)."""

    grams: float = 0.0  # matrices (in, in)
    weights: float = 0.0  # matrices (out, in), in the method's precision
    cubes: float = 0.0  # in³ operations, once per Gram matrix
    squares: float = 0.0  # out · in² operations
    passes: float = 0.0  # times that a weight goes through memory
    systems: float = 0.0  # out · k³ operations, k the smaller of kept and pruned weights of a row
    batch: bool = False  # whether it works on batches of rows


SWAPS = 0.06  # per row and input, until none helps; 50 passes over the row each
COSTS: dict[str, Cost] = {
    "allocation.dlp": Cost(weights=1, passes=20),
    "allocation.error": Cost(grams=2, weights=4, cubes=1, squares=2, passes=100),
    "masks.magnitude": Cost(weights=2.5, passes=10),
    "masks.wanda": Cost(weights=2.5, passes=12),
    "masks.ria": Cost(weights=2.5, passes=20),
    "masks.mrp": Cost(grams=2, weights=2.5, cubes=1, passes=100),
    "joint.sparsegpt": Cost(grams=4, weights=3.5, cubes=1.4, squares=1, passes=20),
    "joint.admm": Cost(grams=2, weights=5.5, cubes=1, squares=40, passes=200),
    "joint.alps": Cost(grams=2, weights=7, cubes=25, squares=140, passes=600),
    "refine.dsnot": Cost(weights=3, passes=500),
    "refine.sparseswaps": Cost(grams=2, weights=2, passes=50, batch=True),
    "refine.swaps-reoptimised": Cost(grams=3, weights=3, systems=60, batch=True),
    "updates.sparsegpt": Cost(grams=4, weights=3.5, cubes=1.4, squares=1, passes=20),
    "updates.mrp": Cost(grams=2, weights=4, cubes=1, squares=2, systems=1 / 3, batch=True),
    "updates.admm": Cost(grams=2, weights=4, cubes=1, squares=40, passes=80),
    "updates.pcg": Cost(grams=2, weights=7, squares=60, passes=400),
    "updates.exact": Cost(grams=2, weights=4, cubes=1, squares=2, systems=1 / 3, batch=True),
}
"""By the method's module."""


def allocate(layout: dict[str, Any], settings: Settings, run: Run) -> Need:
    """Fractions for all linears: one block after the other, with the scores of a whole one in memory."""
    if not run.from_grams:
        return Need(TORCH)
    cost, blocks = COSTS[run.allocation_module], layout["blocks"]
    names = [selected(block["linears"], settings.exclude) for block in blocks]
    recipes = [run.at(block, len(blocks), names[block], dense_inputs=True) for block in range(len(blocks))]
    needs = [method(layout, settings, block, recipe, cost, weights=False) for block, recipe in enumerate(recipes)]
    scores = max(sum(s.rows * s.columns for s in shapes(layout, settings, block)) for block in range(len(blocks)))
    return Need(
        TORCH,
        tensors=max(need.tensors for need in needs) + 8.0 * scores,
        staging=max(need.staging for need in needs),
        disk=MIB,
        read=sum(need.read for need in needs),
        full=sum(need.full for need in needs),
        traffic=sum(need.traffic for need in needs),
        accelerated=True,
    )


def mask(layout: dict[str, Any], settings: Settings, block: int, recipe: Run) -> Need:
    """Mask selection for a block."""
    return method(layout, settings, block, recipe, COSTS[recipe.mask_module], weights=False)


def refine(layout: dict[str, Any], settings: Settings, block: int, recipe: Run) -> Need:
    """Mask refinement for a block."""
    cost = COSTS[recipe.refine_module]
    if cost.batch and recipe.granularity == "matrix":  # across rows: the state of all, and turns; estimated
        cost = replace(cost, weights=cost.weights + 2, passes=1.4 * cost.passes, systems=3 * cost.systems)
    if recipe.refine_module == "refine.sparseswaps":
        cost = replace(cost, passes=SWAPS * max(inputs(shapes(layout, settings, block)), default=0) * cost.passes)
    return method(layout, settings, block, recipe, cost, weights=False)


def update(layout: dict[str, Any], settings: Settings, block: int, recipe: Run) -> Need:
    """Weight update of a block, or mask and weights together."""
    return method(layout, settings, block, recipe, COSTS[recipe.update_module], weights=True)


def method(
    layout: dict[str, Any],
    settings: Settings,
    block: int,
    recipe: Run,
    cost: Cost,
    weights: bool,  # whether it writes weights, else only masks
) -> Need:
    """A method on all linears of a block, one after the other."""
    named = _named(layout, settings, block).items()
    chosen = [(s, p) for name, s in named if (p := recipe.pattern_of(name)) for _ in range(s.experts)]
    linears, size = [shape for shape, _ in chosen], BYTES[recipe.precision]
    if not linears:  # the block stays dense
        return Need(TORCH, accelerated=True)
    distinct = {(linear.input, linear.uses): linear for linear in linears}.values()
    elements = [linear.rows * linear.columns for linear in linears]
    squares = sum(linear.uses * linear.grams * linear.columns**2 for linear in distinct)
    read = 4.0 * squares * (1 + recipe.retargeted) + BYTES[layout["dtype"]] * sum(elements)
    written = sum(elements) / 8 + weights * BYTES[layout["dtype"]] * sum(elements)
    return Need(
        TORCH,
        tensors=size
        * max(
            (1 + max(cost.grams, linear.uses > 1) + 2 * recipe.retargeted) * linear.columns**2
            + (1 + cost.weights) * linear.rows * linear.columns
            for linear in linears
        )
        + BATCH * cost.batch,
        staging=size * (max(linear.columns for linear in linears) ** 2 + max(elements)),
        disk=written,
        scratch=written,
        read=read,
        full=cost.cubes * sum(linear.grams * linear.columns**3 for linear in distinct)
        + sum(
            linear.rows
            * (
                cost.squares * linear.columns**2
                + cost.systems * (min(pattern.sparsity, 1 - pattern.sparsity) * linear.columns) ** 3
            )
            for linear, pattern in chosen
        ),
        traffic=cost.passes * size * sum(elements),
        accelerated=True,
    )


def reconstruct(layout: dict[str, Any], settings: Settings, block: int, recipe: Run) -> Need:
    """Training of a block's kept weights."""
    linears, parameters = shapes(layout, settings, block), layout["blocks"][block]["parameters"]
    outside = layout["outside"] - layout["spared"]
    options, count = recipe.reconstruct, tokens(settings)
    # What backpropagation keeps of a token: inputs and outputs of linears, and about as much of what is between.
    kept = 2 * sum(s.active / s.experts * (s.rows + s.columns) for s in linears) + 8 * layout["width"]
    weights = sum(linear.rows * linear.columns for linear in linears)
    aims, size = 4.0 * count * layout["flow"], BYTES[layout["dtype"]]
    trained = 3 * options.epochs * (1 - options.held_out) + (options.epochs + 1) * options.held_out
    most, length = min(options.batch_size, settings.calibration.samples), settings.calibration.length

    def tensors(device: str) -> float:
        """In float32 the block, its gradients, two moments and the best epoch; masks."""
        at_once = min(most, machine.batch(settings.batch_size, length, device))
        return 4.0 * (outside + parameters + 4 * weights + at_once * length * kept) + weights

    return Need(
        TRANSFORMERS,
        tensors=tensors("cpu"),
        gpu_tensors=tensors("cuda"),
        staging=4.0 * (outside + parameters),
        disk=(size + 1 / 8) * weights + aims,
        passing=aims,
        scratch=(size + 1 / 8) * weights,
        read=4.0 * outside + 2 * size * weights + 2 * options.epochs * aims,
        full=2.0 * (1 + trained) * parameters * count,
        accelerated=True,
        start=4.0,
    )


def assemble(layout: dict[str, Any], settings: Settings) -> Need:
    """The pruned checkpoint."""
    size = model_bytes(layout)
    largest = max(s.rows * s.columns for block in range(len(layout["blocks"])) for s in shapes(layout, settings, block))
    return Need(TORCH, tensors=12.0 * largest, disk=size, read=2 * size)


def fits(need: Need, settings: Settings) -> bool:
    """Whether this machine has the memory for a job, and a GPU of the kind that it would have."""
    device = settings.device.partition(":")[0]
    return asked(need, device) <= machine.memory() and (device == "cpu" or need.gpu() <= gpu_memory(settings))


def gpu_memory(settings: Settings) -> float:
    """Bytes of the GPU that a job would have: of this machine's, or one of `DEVICES`."""
    device = likely_device(settings.device)
    return machine.gpu_memory() or DEVICES["a100" if device == "cpu" else device].memory


def summary() -> Need:
    """Tables."""
    return Need(PYTHON + 60 * MIB, start=3.0)


def report() -> Need:
    """Pages and pictures."""
    return Need(PYTHON + 250 * MIB, disk=5 * MIB, start=10.0)


def asked(need: Need, device: str) -> float:
    """Bytes of host memory that a scheduler is asked for."""
    return 1.2 * need.host(device) + SNAKEMAKE


def requested(need: Callable[[Any], Need], settings: Settings) -> dict[str, Any]:
    """The `resources` of a rule, of the wildcards and the attempt: twice the memory and time with every further one.

    mem_mb, disk_mb; runtime in minutes, of four times the estimate and at least ten; gpu, 0 where `device: cpu`, and
    more than 1 for a whole model that one has not the memory for.
    """
    device = settings.device.partition(":")[0]

    def gpu(wildcards: Any) -> int:
        found = need(wildcards)
        if device == "cpu" or not found.accelerated:
            return 0
        return ceil(found.gpu() / gpu_memory(settings)) if found.divisible and device == settings.device else 1

    def memory(wildcards: Any, attempt: int) -> int:
        return ceil(asked(need(wildcards), device) / MIB) * 2 ** (attempt - 1)

    def disk(wildcards: Any) -> int:
        return ceil((need(wildcards).disk + need(wildcards).aside) / MIB) + 100

    def minutes(wildcards: Any, attempt: int) -> int:
        seconds = need(wildcards).seconds("cpu" if device == "cpu" else "a100", settings.threads_at_least)
        return ceil(10 + 4 * seconds / 60) * 2 ** (attempt - 1)

    return {"mem_mb": memory, "disk_mb": disk, "runtime": minutes, "gpu": gpu}
