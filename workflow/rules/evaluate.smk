# What the dense model and every run are measured by: one job per checkpoint and text, or entry of tasks.


rule perplexity:
    input:
        model="<results>/{model}/model.json",
        recipe=pruned_checkpoint,
        data="<results>/data/{dataset}.parquet",
    output:
        result="<results>/{model}/{trail}/evaluation/perplexity_{dataset}.json",
    log:
        "<results>/logs/{model}/{trail}/perplexity_{dataset}.log",
    conda:
        "../envs/gramprune.yaml"
    threads: SETTINGS.threads
    resources:
        **needs(evaluating.perplexity),
    params:
        settings=lambda w: canonical(SETTINGS.perplexity_settings(w.dataset)),
        code=code("stages.evaluate"),
    script:
        "../scripts/perplexity.py"


rule tasks:
    input:
        model="<results>/{model}/model.json",
        recipe=pruned_checkpoint,
        tasks="<results>/data/tasks/{tasks}.json",
    output:
        result="<results>/{model}/{trail}/evaluation/tasks_{tasks}.json",
    log:
        "<results>/logs/{model}/{trail}/tasks_{tasks}.log",
    conda:
        "../envs/gramprune.yaml"
    threads: SETTINGS.threads
    resources:
        **needs(evaluating.tasks, lambda w: w.tasks),
    params:
        settings=lambda w: canonical(SETTINGS.tasks_settings(w.tasks)),
        code=code("stages.tasks"),
    script:
        "../scripts/tasks.py"
