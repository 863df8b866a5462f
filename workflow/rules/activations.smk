# Calibration tokens, the activations that enter each block, and the Gram matrices of its linears.


rule calibrate:
    input:
        model="<results>/{model}/model.json",
        data=[f"<results>/data/{name}.parquet" for name in SETTINGS.calibration.shares],
    output:
        tokens="<results>/{model}/calibration.safetensors",
    log:
        "<results>/logs/{model}/calibrate.log",
    conda:
        "../envs/gramprune.yaml"
    threads: SETTINGS.threads
    resources:
        **needs(resources.calibrate),
    params:
        settings=lambda w: canonical(SETTINGS.token_settings),
        code=code("stages.calibrate"),
    script:
        "../scripts/calibrate.py"


rule capture:
    input:
        model="<results>/{model}/model.json",
        tokens="<results>/{model}/calibration.safetensors",
        before=inputs_before,
        weights=pruned_before,
        owners=owners_before,
        dense=dense_inputs,
    output:
        inputs=passing("<results>/{model}/{trail}/block_{block}/inputs.safetensors"),
        gram=scratch("<results>/{model}/{trail}/block_{block}/gram.safetensors"),
        metrics="<results>/{model}/{trail}/block_{block}/gram.json",
    log:
        "<results>/logs/{model}/{trail}/block_{block}/capture.log",
    conda:
        "../envs/gramprune.yaml"
    threads: SETTINGS.threads
    resources:
        **needs(resources.capture, block_number, aims_at_dense, is_dense),
    params:
        settings=lambda w: canonical({**SETTINGS.capture_settings, **watched_in(w)}),
        code=code("stages.capture"),
    script:
        "../scripts/capture.py"
