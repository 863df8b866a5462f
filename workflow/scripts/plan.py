from job import execute

execute(snakemake, "plan:show")
