# The run table, checked; where things are; and the two parameters that every rule has.
#
#   <results>/data/{dataset}.parquet, tasks/{tasks}.json    texts; items of tasks
#   <results>/{model}/model.json, layout.json          which model; what can be pruned
#   <results>/{model}/calibration.safetensors          tokens
#   <results>/{model}/dense/allocations/…              fractions of zeros by linear
#   <results>/{model}/{trail}/block_007/…              inputs, gram, masks/{mask}, masks/{mask}+{refine}, weights,
#                                                      reconstructed
#   <results>/{model}/{run}/checkpoint/                the pruned model
#   <results>/{model}/{run}/evaluation/…               measured, for run `dense` too
#
# A trail is where activations come from: `dense`, which all runs share, or the run that pruned the blocks before.
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from gramprune.experiment import checks, resources
from gramprune.experiment.countdown import Countdown
from gramprune.storage import fingerprint, lock
from gramprune.model import folder as model_folder
from gramprune.model import layout
from gramprune import machine
from gramprune.storage.fingerprint import canonical
from gramprune.experiment import pipeline
from gramprune.experiment.pipeline import trail_of

SETTINGS, LAYOUTS = or_exit(
    checks.check, config, planning="plan" in sys.argv, written_in=CONFIG_FILES
)
if workflow.is_main_process:
    for name, found in LAYOUTS.items():
        logger.info(f"Model {name}: {layout.summary(found, SETTINGS.exclude)}")
# The scripts read device and batch size from here, where defaults are filled in.
config.update(SETTINGS.model_dump())
MODELS = {model.name: model for model in SETTINGS.model}
RUNS = {run.name: run for run in SETTINGS.runs}
RECIPES = list(pipeline.recipes(SETTINGS, LAYOUTS))
# A recipe of those that share a mask, or a refinement of it.
MASKS = {recipe.mask_slug: recipe for recipe in RECIPES}
REFINEMENTS = {
    (recipe.mask_slug, recipe.refine_slug): recipe
    for recipe in RECIPES
    if recipe.refined
}
# A run of those that share an allocation.
ALLOCATIONS = {run.allocation_slug: run for run in SETTINGS.runs if run.allocated}
DATASETS = SETTINGS.all_datasets
TASKS = SETTINGS.tasks


def one_of(names):
    """A wildcard constraint; with no names, one that nothing matches."""
    return "|".join(map(re.escape, names)) or "(?!)"


def plain(path):
    """A path as Snakemake can have it: one with braces, which it takes for wildcards, through a link without."""
    parts = Path(path).parts
    special = [place for place, part in enumerate(parts) if re.search("[{}<>]", part)]
    if not special:
        return path
    until = special[-1] + 1
    meant = Path(*parts[:until]).absolute()
    name = f"{fingerprint.short(str(meant))}-{re.sub('[{}<>]', '_', meant.name)}"
    link = Path(".snakemake/gramprune", name)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        with suppress(FileExistsError):  # another Snakemake's
            link.symlink_to(meant)
    return str(link.joinpath(*parts[until:]))


# Links are made now: Snakemake looks at what there is once, before it asks the functions below.
for path in SETTINGS.inputs.values():
    plain(path)


pathvars:
    results=plain(SETTINGS.results),


wildcard_constraints:
    model=one_of(MODELS),
    run=one_of(RUNS),
    trail=one_of(["dense", *RUNS]),
    mask=one_of(MASKS),
    refine=one_of({refine for _, refine in REFINEMENTS}),
    allocation=one_of(ALLOCATIONS),
    dataset=one_of(DATASETS),
    tasks=one_of(TASKS),
    block=r"\d{3}",


def code(*modules):
    """What our modules contain, so that a change in one reruns what uses it."""
    return fingerprint.code(
        *(f"gramprune.{name.replace('-', '_')}" for name in modules)
    )


def blocks_of(model):
    """Block numbers of a model, as they stand in paths."""
    return [f"{index:03d}" for index in range(len(LAYOUTS[model]["blocks"]))]


def needs(stage, *more):
    """The `resources` of a rule: what the library expects of this stage, given what more it depends on."""
    return resources.requested(
        lambda w: stage(LAYOUTS[w.model], SETTINGS, *(find(w) for find in more)),
        SETTINGS,
    )


def lock_results():
    """Nobody else writes into these results while jobs of ours do; to plan, or to look how far it is, all may."""
    if any(
        job.output or job.rule.name == "tidy" for job in workflow.dag.needrun_jobs()
    ):
        or_exit(lock.take, Path(SETTINGS.results))


def begin_countdown():
    """Tell our logger, where it is used, what is to do, and how many jobs compute side by side."""
    screens = [
        handler
        for handler in workflow.logger_manager.get_log_handlers()
        if hasattr(handler, "begin")
    ]
    jobs = [job for job in workflow.dag.needrun_jobs() if job.log]
    if screens and any(job.output for job in jobs):
        given = workflow.global_resources
        devices = given["gpu"].value if "gpu" in given else None
        if workflow.local_exec:
            at_once = devices or workflow.cores // SETTINGS.threads
        else:
            at_once = workflow.nodes or len(jobs)
        logs = [Path(job.log[0]) for job in jobs]
        countdown = Countdown(SETTINGS, LAYOUTS, logs, min(at_once, len(jobs)))
        for screen in screens:
            screen.begin(countdown)


def advice(snakemakes_logs):
    """What to do after a failure, in which a job that was killed is a reason to look for memory."""
    said = "".join(Path(log).read_text(errors="replace") for log in snakemakes_logs)
    of_failed = ", ".join(re.findall(r"log: (.+) \(check log file", said)).split(", ")
    logs = [Path(job.log[0]) for job in workflow.dag.jobs if job.log]
    cut_off = [log for log in logs if str(log) in of_failed and not has_end(log)]
    killed = cut_off or "SIGKILL" in said or "OUT_OF_MEMORY" in said
    memory = " A job was killed, mostly for lack of memory: give it more, or lower batch_size; see docs/cluster.md."
    return f"What is finished stays, and the same command goes on from there.{memory * bool(killed)}"


def has_end(log):
    """Whether a job has said what it has done, or why not: one that is killed cannot."""
    with suppress(OSError):
        text = log.read_text(errors="replace")
        return re.search(r"^gramprune: |: interrupted$|; start-up ", text, re.M)
    return True  # it did not begin


def start_warm_process():
    """Where jobs run on this machine, in this Python and without a GPU, have them start warm: see scripts/warm.py."""
    global warm_process
    if (
        workflow.local_exec
        and not workflow.deployment_settings.deployment_method
        and machine.forks_are_safe()
    ):
        sys.path.append(str(Path(workflow.basedir) / "workflow/scripts"))
        import warm

        socket = str(Path(workflow.snakemake_tmp_dir) / "warm")
        os.environ[warm.ENVIRONMENT] = socket
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # It ends when its pipe does, however Snakemake ends.
        warm_process = warm.start(socket, **quiet)


def block_number(w):
    return int(w.block)


def passing(path):
    """Hidden states: they go, once no job needs them any more, unless everything is kept."""
    return path if SETTINGS.keep == "all" else temp(path)


def scratch(path):
    """Gram matrices, masks and weights: they go too, where only results are kept."""
    return temp(path) if SETTINGS.keep == "results" else path


def block_path(model, trail, block, name):
    return f"<results>/{model}/{trail}/block_{int(block):03d}/{name}"


def grams_of(w):
    """The Gram matrices that a run's block is pruned with."""
    trail = trail_of(RUNS[w.run], int(w.block))
    return block_path(w.model, trail, w.block, "gram.safetensors")


def shared_grams(w):
    """The dense model's Gram matrices of all blocks that work with what this one prunes; none where nobody else does."""
    blocks = pipeline.summed_over(LAYOUTS[w.model], int(w.block), SETTINGS.exclude)
    return [block_path(w.model, "dense", block, "gram.safetensors") for block in blocks]


def dense_grams(w):
    """The dense model's Gram matrices, of all blocks; none where a file gives the fractions."""
    blocks = blocks_of(w.model) if ALLOCATIONS[w.allocation].from_grams else []
    return [block_path(w.model, "dense", block, "gram.safetensors") for block in blocks]


def allocation_file(w):
    """The user's file that gives the fractions: when it changes, what was made with it does."""
    given = ALLOCATIONS[w.allocation].allocation
    return plain(given.path) if given.method == "file" else []


def allocation_modules(w):
    """The module of an allocation's method; none of a file's."""
    run = ALLOCATIONS[w.allocation]
    return [f"pruning.{run.allocation_module}"] if run.from_grams else []


def allocation_of(model, run):
    """What gives a run, or a block of it, its fractions of zeros; nothing where its sparsity does."""
    name = run.allocation_slug if run.allocated else ""
    return f"<results>/{model}/dense/allocations/{name}.json" if name else []


def mask_of(w):
    """The mask of a run's block; none where one method chooses mask and weights together."""
    return [] if RUNS[w.run].joint else final_mask(w.model, w.run, w.block)


def recipe_of(model, run, block):
    """The run as its block sees it."""
    return pipeline.recipe_of(RUNS[run], int(block), LAYOUTS[model], SETTINGS.exclude)


def recipe_at(w):
    return recipe_of(w.model, w.run, w.block)


def final_mask(model, run, block):
    """The mask of a run's block, refined or not; where it is made, runs share it."""
    name = f"masks/{recipe_of(model, run, block).final_mask}.safetensors"
    return block_path(model, trail_of(RUNS[run], int(block)), block, name)


def pruned_block(model, run, block):
    """What a run makes of a block: weights, or its mask alone where nothing is updated."""
    if RUNS[run].reconstructed:
        return block_path(model, run, block, "reconstructed.safetensors")
    if RUNS[run].updated:
        return block_path(model, run, block, "weights.safetensors")
    return final_mask(model, run, block)


def updated_block(w):
    """What a run's block is before its reconstruction."""
    if RUNS[w.run].updated:
        return block_path(w.model, w.run, w.block, "weights.safetensors")
    return final_mask(w.model, w.run, w.block)


def inputs_of(w):
    """The hidden states that enter a run's block."""
    trail = trail_of(RUNS[w.run], int(w.block))
    return block_path(w.model, trail, w.block, "inputs.safetensors")


def aimed_at(w):
    """The dense model's hidden states there, where a run's reconstruction aims at what they become."""
    dense = block_path(w.model, "dense", w.block, "inputs.safetensors")
    return dense if RUNS[w.run].follows_dense else []


def patterns_of(w):
    """Where the zeros of each of a run's blocks may be."""
    blocks = blocks_of(w.model)
    return [recipe_of(w.model, w.run, block).pattern_settings for block in blocks]


def pruned_blocks(w):
    return [pruned_block(w.model, w.run, block) for block in blocks_of(w.model)]


def watched_in(w):
    """The linears of a block that are looked at."""
    return pipeline.watched(LAYOUTS[w.model], w.trail, int(w.block), SETTINGS.exclude)


def inputs_before(w):
    """The hidden states that entered the block before; none for the first block."""
    before = int(w.block) - 1
    if before < 0:
        return []
    trail = "dense" if w.trail == "dense" or before == 0 else w.trail
    return block_path(w.model, trail, before, "inputs.safetensors")


def is_dense(w):
    return w.trail == "dense"


def pruned_before(w):
    """What the run made of the block before; none on the dense trail."""
    return (
        [] if w.trail == "dense" else pruned_block(w.model, w.trail, int(w.block) - 1)
    )


def pruned_owners(model, run, block):
    """What a run made of earlier blocks that prune what this one works with."""
    owners = pipeline.owners_of(LAYOUTS[model], int(block), SETTINGS.exclude)
    return [pruned_block(model, run, owner) for owner in owners]


def owners_before(w):
    """The same of the block before; none on the dense trail."""
    if w.trail == "dense":
        return []
    return pruned_owners(w.model, w.trail, int(w.block) - 1)


def aims_at_dense(w):
    """Whether a trail's run aims at the dense model's outputs."""
    return w.trail != "dense" and RUNS[w.trail].retargeted


def dense_inputs(w):
    """The dense model's hidden states, which a run that aims at its outputs sees beside its own."""
    if not aims_at_dense(w):
        return []
    return block_path(w.model, "dense", w.block, "inputs.safetensors")


def evaluations_of(model, run):
    """What a run is measured by: one file per text and per entry of tasks."""
    return [f"<results>/{name}" for name in SETTINGS.evaluations(model, run)]


def pruned_checkpoint(w):
    """What says that a run's checkpoint is there; nothing for the dense model."""
    return (
        []
        if w.trail == "dense"
        else f"<results>/{w.model}/{w.trail}/checkpoint/gramprune.json"
    )


def task_files(w):
    """A folder of task definitions: when it changes, what was made with it does."""
    folder = TASKS[w.tasks].include_path
    return (
        sorted(plain(str(path)) for path in Path(folder).rglob("*") if path.is_file())
        if folder
        else []
    )


def model_settings(w):
    model = MODELS[w.model]
    return canonical(
        {"kind": model.kind, "source": model.location, "revision": model.revision}
    )


def model_files(w):
    """A local model's files: when they change, everything that was made from them does."""
    model = MODELS[w.model]
    if model.kind != "folder":
        return []
    return [plain(str(path)) for path in model_folder.files(Path(model.location))]


def every_run():
    """Model and run of every row of the summary, the dense model first."""
    return [(model, run) for model in MODELS for run in ["dense", *RUNS]]


def every_metrics(w):
    """What the stages measured, each file once, however many runs share it."""
    found = []
    for model in MODELS:
        for run in RUNS.values():
            for block in blocks_of(model):
                trail = trail_of(run, int(block))
                recipe = recipe_of(model, run.name, block)
                masks = [] if run.joint else [recipe.mask_slug, recipe.final_mask]
                names = ["gram", *(f"masks/{mask}" for mask in masks)]
                found += [
                    block_path(model, trail, block, f"{name}.json") for name in names
                ]
                if pipeline.shared_of(LAYOUTS[model], int(block), SETTINGS.exclude):
                    found.append(block_path(model, "dense", block, "gram.json"))
                made = {"weights": run.updated, "reconstructed": run.reconstructed}
                found += [
                    block_path(model, run.name, block, f"{name}.json")
                    for name, whether in made.items()
                    if whether
                ]
    return list(dict.fromkeys(found))
