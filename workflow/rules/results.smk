# Tables and pictures of all models and runs.


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
                    found.append(block_path(model, trail, block, f"masks/{run.mask_slug}.json"))
                if run.update.method != "none":
                    found.append(block_path(model, run.name, block, "weights.json"))
    return list(dict.fromkeys(found))


rule summary:
    input:
        evaluations=[path for model, run in every_run() for path in evaluations_of(model, run).values()],
        recipes=[
            f"<results>/{model}/{run}/checkpoint/gramprune.json" for model, run in every_run() if run != "dense"
        ],
    output:
        csv="<results>/summary.csv",
        parquet="<results>/summary.parquet",
        html=report("<results>/summary.html", caption="../report/summary.rst", category="Results"),
        plot=report("<results>/perplexity.svg", caption="../report/perplexity.rst", category="Results"),
    log:
        "<results>/logs/summary.log",
    params:
        settings=canonical(SETTINGS.summary_settings),
        code=code("stages.summarise"),
    conda:
        "../envs/gramprune.yaml"
    script:
        "../scripts/summary.py"


rule layers:
    input:
        metrics=every_metrics,
    output:
        parquet="<results>/layers.parquet",
    log:
        "<results>/logs/layers.log",
    params:
        settings="{}",
        code=code("stages.summarise"),
    conda:
        "../envs/gramprune.yaml"
    script:
        "../scripts/layers.py"
