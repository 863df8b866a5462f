# Before anything else: the library, how much Snakemake says, and the files of settings, before Snakemake reads them.
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "src"))

from snakemake.logging import logger
from snakemake.settings.enums import Quietness

from gramprune.errors import GrampruneError
from gramprune.experiment import configfile

# What the library says while it looks at the configuration, such as why it takes a while.
logging.getLogger("gramprune").setLevel(logging.INFO)
logging.getLogger("gramprune").addHandler(logging.StreamHandler())


def say_little():
    """With `quiet: [progress]`, a line of ours per finished job, and of Snakemake's words only warnings and errors.

    Not `quiet: [all]`, which takes the errors away too. A dry run says everything: it is asked for its words.
    """
    for handler in logger.handlers:
        if workflow.output_settings.dryrun:
            handler.filters.clear()
        elif not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.WARNING)


def or_exit(check, *arguments, **options):
    """What a function returns; a user's mistake ends here, in one sentence, before any job starts."""
    try:
        return check(*arguments, **options)
    except GrampruneError as error:
        sys.exit(f"gramprune: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if workflow.is_main_process and Quietness.PROGRESS in (
    workflow.output_settings.quiet or ()
):
    say_little()

CONFIG_FILES = workflow.configfiles or ["config.yaml"]
for path in CONFIG_FILES:
    or_exit(configfile.read, path)
