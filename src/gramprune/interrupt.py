"""Signals: what Ctrl-C ends with where nothing has to be put in order, and how jobs and Snakemake hear the others."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

INTERRUPTED = 130


def at_once(number: int, _: object) -> NoReturn:
    """A handler of SIGINT: a word, and the exit status that shells give.

    It raises nothing: some libraries, while they are imported, make another error of that.
    """
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's `sys.excepthook`, but without a traceback of Ctrl-C: for Snakemake, which has locks to take away."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED)


def as_ctrl_c(number: int, _: object) -> NoReturn:
    """A handler for jobs of Ctrl-C, scancel or a time limit: what is half written goes, and what else comes is unheard.

    Raises KeyboardInterrupt.
    """
    unheard()
    raise KeyboardInterrupt


def unheard() -> None:
    """From now on nothing interrupts this process. Not SIG_IGN: Python says of a signal that waits that it raced."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


def in_a_thread(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
    """A handler of a signal, called beside what was interrupted.

    Snakemake's handler of SIGTERM takes a lock; called on top of code that has this lock it would wait for ever.
    """
    return lambda number, frame: threading.Thread(target=handler, args=(number, frame)).start()
