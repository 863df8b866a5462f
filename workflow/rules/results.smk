# Tables and pictures of all models and runs.


rule summary:
    input:
        evaluations=[
            path
            for model, run in every_run()
            for path in evaluations_of(model, run).values()
        ],
        recipes=[
            f"<results>/{model}/{run}/checkpoint/gramprune.json"
            for model, run in every_run()
            if run != "dense"
        ],
    output:
        csv="<results>/summary.csv",
        parquet="<results>/summary.parquet",
        html=report(
            "<results>/summary.html",
            caption="../report/summary.rst",
            category="Results",
        ),
        plot=report(
            "<results>/perplexity.svg",
            caption="../report/perplexity.rst",
            category="Results",
        ),
    log:
        "<results>/logs/summary.log",
    conda:
        "../envs/gramprune.yaml"
    params:
        settings=canonical(SETTINGS.summary_settings),
        code=code("stages.summarise"),
    script:
        "../scripts/summary.py"


rule layers:
    input:
        metrics=every_metrics,
    output:
        parquet="<results>/layers.parquet",
    log:
        "<results>/logs/layers.log",
    conda:
        "../envs/gramprune.yaml"
    params:
        settings="{}",
        code=code("stages.summarise"),
    script:
        "../scripts/layers.py"
