# The pruned model as a Hugging Face folder. `gramprune.json`, which says what was done, is written last.


rule assemble:
    input:
        model="<results>/{model}/model.json",
        weights=pruned_blocks,
        allocation=lambda w: allocation_of(w.model, RUNS[w.run]),
    output:
        recipe="<results>/{model}/{run}/checkpoint/gramprune.json",
    log:
        "<results>/logs/{model}/{run}/assemble.log",
    conda:
        "../envs/gramprune.yaml"
    threads: SETTINGS.threads
    resources:
        **needs(resources.assemble),
    params:
        settings=lambda w: canonical(
            {"run": RUNS[w.run].described, "patterns": patterns_of(w)}
        ),
        code=code("stages.assemble"),
    script:
        "../scripts/assemble.py"
