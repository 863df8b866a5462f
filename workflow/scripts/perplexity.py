from pathlib import Path

from job import execute

streamed = snakemake.config["streamed"][snakemake.wildcards.model]["perplexity"]

execute(
    snakemake,
    "evaluate:evaluate_perplexity",
    model=snakemake.input.model,
    checkpoint=Path(str(snakemake.input.recipe)).parent if snakemake.input.recipe else None,
    dataset=snakemake.input.data,
    output=snakemake.output.result,
    device=snakemake.config["device"],
    batch_size=snakemake.config["batch_size"],
    memory="streamed" if streamed else "whole",
)
