# Tables of all models and runs, and the report that shows them.


rule summary:
    input:
        evaluations=[
            path for model, run in every_run() for path in evaluations_of(model, run)
        ],
        recipes=[
            f"<results>/{model}/{run}/checkpoint/gramprune.json"
            for model, run in every_run()
            if run != "dense"
        ],
        metrics=every_metrics,
    output:
        csv="<results>/summary.csv",
        parquet="<results>/summary.parquet",
        markdown="<results>/summary.md",
        latex="<results>/summary.tex",
        layers="<results>/layers.parquet",
        experiment="<results>/experiment.json",
    log:
        "<results>/logs/summary.log",
    conda:
        "../envs/gramprune.yaml"
    params:
        settings=lambda w: canonical(
            {"rows": SETTINGS.summary_settings, "config": SETTINGS.experiment}
        ),
        code=code("stages.summarise"),
    script:
        "../scripts/summary.py"


rule report:
    input:
        "<results>/summary.parquet",
        "<results>/layers.parquet",
        "<results>/experiment.json",
    output:
        # Its pictures lie in a folder beside it. Snakemake would empty that one before, with what others have put there.
        html=report(
            "<results>/report.html",
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        "<results>/logs/report.log",
    conda:
        "../envs/gramprune.yaml"
    params:
        settings="{}",
        code=code("stages.report"),
    script:
        "../scripts/report.py"
