# How zeros are divided, masks, better masks, and the weights under them, which see weights and Gram matrices alone; then
# the whole block.


rule allocate:
    input:
        model="<results>/{model}/model.json",
        tokens="<results>/{model}/calibration.safetensors",
        grams=dense_grams,
        mapping=allocation_file,
    output:
        allocation="<results>/{model}/dense/allocations/{allocation}.json",
    log:
        "<results>/logs/{model}/dense/allocate_{allocation}.log",
    conda:
        "../envs/gramprune.yaml"
    threads: SETTINGS.threads
    resources:
        **needs(resources.allocate, lambda w: ALLOCATIONS[w.allocation]),
    params:
        settings=lambda w: canonical(
            pipeline.allocation_settings(
                ALLOCATIONS[w.allocation], LAYOUTS[w.model], SETTINGS.exclude
            )
        ),
        code=lambda w: code("stages.allocate", *allocation_modules(w)),
    script:
        "../scripts/allocate.py"


rule mask:
    input:
        model="<results>/{model}/model.json",
        tokens="<results>/{model}/calibration.safetensors",
        gram="<results>/{model}/{trail}/block_{block}/gram.safetensors",
        shared=shared_grams,
        allocation=lambda w: allocation_of(w.model, MASKS[w.mask]),
    output:
        mask=scratch("<results>/{model}/{trail}/block_{block}/masks/{mask}.safetensors"),
        metrics="<results>/{model}/{trail}/block_{block}/masks/{mask}.json",
    log:
        "<results>/logs/{model}/{trail}/block_{block}/mask_{mask}.log",
    conda:
        "../envs/gramprune.yaml"
    threads: SETTINGS.threads
    resources:
        **needs(resources.mask, block_number, lambda w: MASKS[w.mask]),
    params:
        settings=lambda w: canonical(MASKS[w.mask].mask_settings),
        code=lambda w: code("stages.mask", f"pruning.{MASKS[w.mask].mask_module}"),
    script:
        "../scripts/mask.py"


rule refine:
    input:
        model="<results>/{model}/model.json",
        tokens="<results>/{model}/calibration.safetensors",
        gram="<results>/{model}/{trail}/block_{block}/gram.safetensors",
        shared=shared_grams,
        mask="<results>/{model}/{trail}/block_{block}/masks/{mask}.safetensors",
        allocation=lambda w: allocation_of(w.model, MASKS[w.mask]),
    output:
        mask=scratch(
            "<results>/{model}/{trail}/block_{block}/masks/{mask}+{refine}.safetensors"
        ),
        metrics="<results>/{model}/{trail}/block_{block}/masks/{mask}+{refine}.json",
    log:
        "<results>/logs/{model}/{trail}/block_{block}/refine_{mask}+{refine}.log",
    conda:
        "../envs/gramprune.yaml"
    threads: SETTINGS.threads
    resources:
        **needs(resources.refine, block_number, lambda w: REFINEMENTS[w.mask, w.refine]),
    params:
        settings=lambda w: canonical(REFINEMENTS[w.mask, w.refine].refine_settings),
        code=lambda w: code(
            "stages.mask", f"pruning.{REFINEMENTS[w.mask, w.refine].refine_module}"
        ),
    script:
        "../scripts/mask.py"


rule update:
    input:
        model="<results>/{model}/model.json",
        tokens="<results>/{model}/calibration.safetensors",
        gram=grams_of,
        shared=shared_grams,
        mask=mask_of,
        allocation=lambda w: (
            allocation_of(w.model, RUNS[w.run]) if RUNS[w.run].joint else []
        ),
    output:
        weights=scratch("<results>/{model}/{run}/block_{block}/weights.safetensors"),
        metrics="<results>/{model}/{run}/block_{block}/weights.json",
    log:
        "<results>/logs/{model}/{run}/block_{block}/update.log",
    conda:
        "../envs/gramprune.yaml"
    threads: SETTINGS.threads
    resources:
        **needs(resources.update, block_number, recipe_at),
    params:
        settings=lambda w: canonical(recipe_at(w).update_settings),
        code=lambda w: code("stages.update", f"pruning.{RUNS[w.run].update_module}"),
    script:
        "../scripts/update.py"


rule reconstruct:
    input:
        model="<results>/{model}/model.json",
        tokens="<results>/{model}/calibration.safetensors",
        inputs=inputs_of,
        dense=aimed_at,
        weights=updated_block,
        owners=lambda w: pruned_owners(w.model, w.run, w.block),
    output:
        weights=scratch(
            "<results>/{model}/{run}/block_{block}/reconstructed.safetensors"
        ),
        metrics="<results>/{model}/{run}/block_{block}/reconstructed.json",
    log:
        "<results>/logs/{model}/{run}/block_{block}/reconstruct.log",
    conda:
        "../envs/gramprune.yaml"
    threads: SETTINGS.threads
    resources:
        **needs(resources.reconstruct, block_number, lambda w: RUNS[w.run]),
    params:
        settings=lambda w: canonical(RUNS[w.run].reconstruct_settings),
        code=code("stages.reconstruct"),
    script:
        "../scripts/reconstruct.py"
