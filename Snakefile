# Gramprune: prune large language models, one cached stage per rule. The table of contents is workflow/Snakefile.
#
#   snakemake --cores 8                 the runs of config.yaml
#   snakemake --cores 8 --configfile examples/llama-3.2-1b.yaml
#   snakemake -n                        what would be done, and why
#   snakemake --cores 1 plan            what it would take: jobs, memory, disk, time
#   snakemake --cores 1 status          how far it is, and how long the rest will take
#   snakemake --cores 1 tidy            remove what finished runs no longer need
include: "workflow/Snakefile"


# What is made if nothing else is asked for: Snakemake forgets it at the end of an included file.
workflow.default_target = "all"
