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
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from gramprune.experiment import checks, choice, evaluating, resources
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
# Of this machine, where Snakemake shares its cores among the jobs; a cluster's jobs are given their own.
here = workflow.local_exec and workflow.is_main_process
cores = workflow.resource_settings.cores if here else None
SETTINGS = SETTINGS.model_copy(
    update={"threads": pipeline.threads(SETTINGS, LAYOUTS, cores or 1)}
)
if workflow.is_main_process:
    for name, found in LAYOUTS.items():
        logger.info(f"Model {name}: {layout.summary(found, SETTINGS.exclude)}")
# The scripts read device and batch size from here, where defaults are filled in, and which evaluations are streamed.
config.update(SETTINGS.model_dump())
config["streamed"] = {
    name: {
        "perplexity": evaluating.is_streamed(found, SETTINGS),
        "tasks": {
            tasks: evaluating.is_streamed(found, SETTINGS, tasks)
            for tasks in SETTINGS.tasks
        },
    }
    for name, found in LAYOUTS.items()
}
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


def describe_job():
    """For `python -m gramprune.stages`: write down what one job would be told, and end before any is started."""
    asked = json.loads(os.environ[choice.ASKED])
    key = or_exit(choice.one_job, pipeline.jobs(SETTINGS, LAYOUTS), **asked["words"])
    job = next(j for j in workflow.dag.jobs if j.log and choice.has_log(key, j.log[0]))
    sys.path.append(str(SCRIPTS))
    from job import describe

    told = describe(job, config, SCRIPTS / Path(job.rule.script).name)
    Path(asked["answer"]).write_text(json.dumps({**told, "results": SETTINGS.results}))
    sys.exit()


def start_warm_process():
    """Where jobs run on this machine and in this Python, have them start warm: see scripts/warm.py."""
    global warm_process
    deployed = workflow.deployment_settings.deployment_method
    if workflow.local_exec and not deployed and sys.platform == "linux":
        sys.path.append(str(SCRIPTS))
        import ask_warm
        import warm

        socket = str(Path(workflow.snakemake_tmp_dir) / "warm")
        os.environ[ask_warm.ENVIRONMENT] = socket
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        workers = "GRAMPRUNE_WORKERS" in os.environ or not machine.forks_are_safe()
        captures = any(
            job.rule.name == "capture" for job in workflow.dag.needrun_jobs()
        )
        # It ends when its pipe does, however Snakemake ends.
        warm_process = warm.start(
            socket,
            "workers" if workers else "forks",
            "gramprune.stages.capture" if captures else "",
            **quiet,
        )
