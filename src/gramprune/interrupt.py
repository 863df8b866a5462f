"""What Ctrl-C ends with where nothing has to be put in order: a word, and the exit status that shells give."""

import os
import sys
from types import TracebackType
from typing import NoReturn

INTERRUPTED = 130


def at_once(number: int, _: object) -> NoReturn:
    """A handler of SIGINT. It raises nothing: some libraries, while they are imported, make another error of that."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's `sys.excepthook`, but without a traceback of Ctrl-C: for Snakemake, which has locks to take away."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED)
