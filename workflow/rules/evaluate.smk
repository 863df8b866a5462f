# What the dense model and every run are measured by: one job per checkpoint and dataset.


rule perplexity:
    input:
        model="<results>/{model}/model.json",
        recipe=lambda w: (
            []
            if w.trail == "dense"
            else f"<results>/{w.model}/{w.trail}/checkpoint/gramprune.json"
        ),
        data="<results>/data/{dataset}.parquet",
    output:
        result="<results>/{model}/{trail}/evaluation/perplexity_{dataset}.json",
    log:
        "<results>/logs/{model}/{trail}/perplexity_{dataset}.log",
    conda:
        "../envs/gramprune.yaml"
    threads: SETTINGS.threads
    resources:
        **needs(resources.perplexity),
    params:
        settings=lambda w: canonical(SETTINGS.perplexity_settings(w.dataset)),
        code=code("stages.evaluate"),
    script:
        "../scripts/perplexity.py"
