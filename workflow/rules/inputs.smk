# Of the wildcards: which files are read and written, and what more a job is told.


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
