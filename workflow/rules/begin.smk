# Before anything else: the library, and the files of settings, before Snakemake reads them.
import logging
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "src"))

from snakemake.logging import logger

from gramprune import interrupt
from gramprune.errors import GrampruneError
from gramprune.experiment import configfile

# Ctrl-C, which Snakemake expects only once jobs run: until the Snakefile is read there is nothing to put in order.
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
        sys.exit(f"gramprune: {error}")


CONFIG_FILES = workflow.configfiles or ["config.yaml"]
for path in CONFIG_FILES:
    or_exit(configfile.read, path)
