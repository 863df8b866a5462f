"""One module per stage of the workflow: reads artifacts, calls the library, writes artifacts.

A stage is a function of paths and plain settings. It can be called without Snakemake; nothing here knows of it.
"""
