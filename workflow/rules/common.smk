# The run table, checked; where things are; and the two parameters that every rule has.
#
#   <results>/data/{dataset}.parquet                   texts
#   <results>/{model}/model.json, layout.json          which model; what can be pruned
#   <results>/{model}/calibration.safetensors          tokens
#   <results>/{model}/{trail}/block_007/…              inputs, gram, masks/{mask}, weights
#   <results>/{model}/{run}/checkpoint/                the pruned model
#   <results>/{model}/{run}/evaluation/…               measured, for run `dense` too
#
# A trail is where activations come from: `dense`, which all runs share, or the run that pruned the blocks before.
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "src"))

from snakemake.logging import logger

from gramprune import checks, fingerprint, layout
from gramprune.errors import GrampruneError
from gramprune.fingerprint import canonical


def checked():
    """Settings and layouts. A user's mistake ends here, in one sentence, before any job starts."""
    try:
        return checks.check(config)
    except GrampruneError as error:
        sys.exit(f"gramprune: {error}")


SETTINGS, LAYOUTS = checked()
if workflow.is_main_process:
    for name, found in LAYOUTS.items():
        logger.info(f"Model {name}: {layout.summary(found, SETTINGS.exclude)}")
# The scripts read device and batch size from here, where defaults are filled in.
config.update(SETTINGS.model_dump())
MODELS = {model.name: model for model in SETTINGS.model}
RUNS = {run.name: run for run in SETTINGS.runs}
MASKS = {run.mask_slug: run.mask_settings for run in SETTINGS.runs}
DATASETS = SETTINGS.all_datasets


def one_of(names):
    """A wildcard constraint; with no names, one that nothing matches."""
    return "|".join(map(re.escape, names)) or "(?!)"


pathvars:
    results=SETTINGS.results,


wildcard_constraints:
    model=one_of(MODELS),
    run=one_of(RUNS),
    trail=one_of(["dense", *RUNS]),
    mask=one_of(MASKS),
    dataset=one_of(DATASETS),
    block=r"\d{3}",


def code(*modules):
    """What our modules contain, so that a change in one reruns what uses it."""
    return fingerprint.code(*(f"gramprune.{module}" for module in modules))


def blocks_of(model):
    """Block numbers of a model, as they stand in paths."""
    return [f"{index:03d}" for index in range(len(LAYOUTS[model]["blocks"]))]


def trail_of(run, block):
    """Where the activations come from that this run's block sees."""
    return "dense" if int(block) == 0 or RUNS[run].propagation == "dense" else run


def block_path(model, trail, block, name):
    return f"<results>/{model}/{trail}/block_{int(block):03d}/{name}"


def grams_of(w):
    """The Gram matrices that a run's block is pruned with."""
    return block_path(w.model, trail_of(w.run, w.block), w.block, "gram.safetensors")


def mask_of(w):
    """The mask of a run's block; none where one method chooses mask and weights together."""
    run = RUNS[w.run]
    name = f"masks/{run.mask_slug}.safetensors"
    return (
        []
        if run.joint
        else block_path(w.model, trail_of(w.run, w.block), w.block, name)
    )


def pruned_block(model, run, block):
    """What a run makes of a block: weights, or its mask alone where nothing is updated."""
    recipe = RUNS[run]
    if recipe.update.method == "none":
        return block_path(
            model, trail_of(run, block), block, f"masks/{recipe.mask_slug}.safetensors"
        )
    return block_path(model, run, block, "weights.safetensors")


def pruned_blocks(w):
    return [pruned_block(w.model, w.run, block) for block in blocks_of(w.model)]


def inputs_before(w):
    """The hidden states that entered the block before; none for the first block."""
    before = int(w.block) - 1
    if before < 0:
        return []
    trail = "dense" if w.trail == "dense" or before == 0 else w.trail
    return block_path(w.model, trail, before, "inputs.safetensors")


def pruned_before(w):
    """What the run made of the block before; none on the dense trail."""
    return (
        [] if w.trail == "dense" else pruned_block(w.model, w.trail, int(w.block) - 1)
    )


def evaluations_of(model, run):
    return {
        dataset: f"<results>/{model}/{run}/evaluation/perplexity_{dataset}.json"
        for dataset in SETTINGS.evaluation.perplexity.datasets
    }


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
    return sorted(
        str(path) for path in Path(model.location).iterdir() if path.is_file()
    )


def every_run():
    """Model and run of every row of the summary, the dense model first."""
    return [(model, run) for model in MODELS for run in ["dense", *RUNS]]


def every_metrics(w):
    """What the stages measured, each file once, however many runs share it."""
    found = []
    for model in MODELS:
        for run in RUNS.values():
            for block in blocks_of(model):
                trail = trail_of(run.name, block)
                found.append(block_path(model, trail, block, "gram.json"))
                if not run.joint:
                    found.append(
                        block_path(model, trail, block, f"masks/{run.mask_slug}.json")
                    )
                if run.update.method != "none":
                    found.append(block_path(model, run.name, block, "weights.json"))
    return list(dict.fromkeys(found))
