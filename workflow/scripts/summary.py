from job import execute

execute(
    snakemake,
    "summarise:summarise",
    evaluations=list(snakemake.input.evaluations),
    recipes=list(snakemake.input.recipes),
    csv=snakemake.output.csv,
    parquet=snakemake.output.parquet,
    html=snakemake.output.html,
    plot=snakemake.output.plot,
)
