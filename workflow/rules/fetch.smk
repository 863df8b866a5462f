# Models and texts. The only rules that may use the network; they run where Snakemake runs.


def model_settings(w):
    model = MODELS[w.model]
    return canonical({"kind": model.kind, "source": model.location, "revision": model.revision})


def model_files(w):
    """A local model's files: when they change, everything that was made from them does."""
    model = MODELS[w.model]
    folder = Path(model.location)
    return sorted(map(str, folder.glob("*.safetensors"))) if model.kind == "folder" else []


rule fetch_model:
    input:
        files=model_files,
    output:
        model="<results>/{model}/model.json",
    log:
        "<results>/logs/{model}/fetch_model.log",
    wildcard_constraints:
        model=one_of(name for name, model in MODELS.items() if model.kind != "demo"),
    params:
        settings=model_settings,
        code=code("stages.fetch"),
    conda:
        "../envs/gramprune.yaml"
    script:
        "../scripts/fetch_model.py"


rule demo_model:
    output:
        model="<results>/{model}/model.json",
        folder=directory("<results>/{model}/model"),
    log:
        "<results>/logs/{model}/demo_model.log",
    wildcard_constraints:
        model=one_of(name for name, model in MODELS.items() if model.kind == "demo"),
    params:
        settings=model_settings,
        code=code("stages.fetch", "demo"),
    threads: 2
    conda:
        "../envs/gramprune.yaml"
    script:
        "../scripts/fetch_model.py"


rule fetch_data:
    input:
        file=lambda w: DATASETS[w.dataset].path or [],
    output:
        data="<results>/data/{dataset}.parquet",
    log:
        "<results>/logs/data/{dataset}.log",
    params:
        settings=lambda w: canonical(DATASETS[w.dataset].source_settings),
        code=code("stages.fetch"),
    conda:
        "../envs/gramprune.yaml"
    script:
        "../scripts/fetch_data.py"
