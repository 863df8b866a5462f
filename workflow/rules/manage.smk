# Targets that make nothing: `snakemake plan` before an experiment, `status` meanwhile, `tidy` after it.


rule plan:
    log:
        "<results>/logs/plan.log",
    localrule: True
    conda:
        "../envs/gramprune.yaml"
    params:
        settings=lambda w: canonical(SETTINGS.model_dump()),
        code=code("stages.plan"),
    script:
        "../scripts/plan.py"


rule status:
    log:
        "<results>/logs/status.log",
    localrule: True
    conda:
        "../envs/gramprune.yaml"
    params:
        settings=lambda w: canonical(SETTINGS.model_dump()),
        code=code("stages.status"),
    script:
        "../scripts/status.py"


rule tidy:
    log:
        "<results>/logs/tidy.log",
    localrule: True
    conda:
        "../envs/gramprune.yaml"
    params:
        settings=lambda w: canonical(SETTINGS.tidy_settings),
        code=code("stages.tidy"),
    script:
        "../scripts/tidy.py"
