# Models, texts and items of tasks. The only rules that may use the network; they run where Snakemake runs.


rule fetch_model:
    input:
        files=model_files,
    output:
        model="<results>/{model}/model.json",
    log:
        "<results>/logs/{model}/fetch_model.log",
    wildcard_constraints:
        model=one_of(name for name, model in MODELS.items() if model.kind != "demo"),
    localrule: True
    conda:
        "../envs/gramprune.yaml"
    params:
        settings=model_settings,
        code=code("stages.fetch"),
    script:
        "../scripts/fetch_model.py"


rule demo_model:
    output:
        model="<results>/{model}/model.json",
    log:
        "<results>/logs/{model}/fetch_model.log",
    wildcard_constraints:
        model=one_of(name for name, model in MODELS.items() if model.kind == "demo"),
    conda:
        "../envs/gramprune.yaml"
    threads: 2
    params:
        settings=model_settings,
        code=code("stages.fetch"),
    script:
        "../scripts/fetch_model.py"


rule fetch_data:
    input:
        file=lambda w: [plain(path) for path in DATASETS[w.dataset].paths],
    output:
        data="<results>/data/{dataset}.parquet",
    log:
        "<results>/logs/data/{dataset}.log",
    localrule: True
    conda:
        "../envs/gramprune.yaml"
    params:
        settings=lambda w: canonical(DATASETS[w.dataset].source_settings),
        code=code("stages.texts"),
    script:
        "../scripts/fetch_data.py"


rule fetch_tasks:
    input:
        files=task_files,
    output:
        tasks="<results>/data/tasks/{tasks}.json",
    log:
        "<results>/logs/data/tasks/{tasks}.log",
    localrule: True
    conda:
        "../envs/gramprune.yaml"
    params:
        settings=lambda w: canonical(
            TASKS[w.tasks].model_dump(include={"tasks", "include_path"})
        ),
        code=code("stages.tasks"),
    script:
        "../scripts/fetch_tasks.py"
