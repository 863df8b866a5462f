# Before anything else: the library, and the files of settings, before Snakemake reads them.
import importlib.util
import logging
import os
import signal
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

# Of a clone; an installed package has the workflow inside. From a repository Snakemake fetches file by file, and of
# scripts only those that rules name: what these import is fetched here, to the same folder.
if workflow.current_basedir.is_local:
    folder = Path(workflow.current_basedir.get_path_or_uri(secret_free=False)).parent
    SCRIPTS = folder / "scripts"
    if (folder.parent / "src").is_dir():
        sys.path.insert(0, str(folder.parent / "src"))
elif importlib.util.find_spec("gramprune"):
    helpers = [
        f"../scripts/{name}.py"
        for name in ("job", "ask_warm", "library", "warm", "work")
    ]
    SCRIPTS = Path([workflow.source_path(helper) for helper in helpers][0]).parent
else:
    raise WorkflowError(
        "gramprune: the package gramprune is not installed in the environment that Snakemake runs in; "
        "install it from the same repository with pip."
    )

from gramprune import interrupt
from gramprune.errors import GrampruneError
from gramprune.experiment import configfile

IS_MODULE = len(workflow.modifier_stack) > 1  # of another workflow

# Ctrl-C, which Snakemake expects only once jobs run: until the Snakefile is read there is nothing to put in order.
# As a module of another workflow this one leaves both as they are.
if not IS_MODULE:
    signal.signal(signal.SIGINT, interrupt.at_once)
    sys.excepthook = interrupt.last_words

# What the library says while it looks at the configuration, such as why it takes a while.
logging.getLogger("gramprune").setLevel(logging.INFO)
logging.getLogger("gramprune").addHandler(logging.StreamHandler())


def or_exit(check, *arguments, **options):
    """What a function returns; a user's mistake ends here, in one sentence, before any job starts."""
    try:
        return check(*arguments, **options)
    except GrampruneError as error:
        if IS_MODULE:
            raise WorkflowError(f"gramprune: {error}")
        sys.exit(f"gramprune: {error}")


# A module gets its configuration from the workflow that it is part of, which has read it.
CONFIG_FILES = [] if IS_MODULE else workflow.configfiles or ["config.yaml"]
for path in CONFIG_FILES:
    or_exit(configfile.read, path)
