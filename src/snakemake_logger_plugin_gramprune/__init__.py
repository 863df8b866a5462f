"""What a person sees while the workflow runs: Snakemake's `--logger gramprune`.

In a terminal, one live status at the bottom; elsewhere, one line per finished job. A failed job's own sentence comes at
once. Of Snakemake's words only warnings and errors are left; all of them with --verbose, and in a dry run.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from logging import INFO, WARNING, LogRecord
from pathlib import Path
from threading import Event, Thread
from typing import Any

from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_gramprune.live import Live, clock

ENVIRONMENT = "GRAMPRUNE_SCREEN"  # tells jobs which file is the screen: workflow/scripts/work.py
EVERY = 0.5  # seconds between two pictures
TAIL = 1 << 16  # bytes of a log that are looked at
INTERRUPTED = ("died with <Signals.SIGINT: 2>", "non-zero exit status 130")  # by Ctrl-C or a signal, on this machine
# What is said although it is no warning.
ENDING = "Terminating processes on user request"
ANSWERS = ("Nothing to be done", ENDING)
ROUTINE = "Assuming unrestricted shared filesystem usage"
# After a failed job or Ctrl-C, of which enough has been said, Snakemake says these too.
ECHOES = ("Exiting because a job execution failed", "WorkflowError:\nAt least one job did not complete successfully")


@dataclass
class Running:
    """A job under way."""

    log: Path
    words: str
    local: bool  # it runs on this machine, and at once
    since: float = field(default_factory=time.time)  # seconds since the epoch

    def lines(self) -> list[str] | None:
        """What it has written, or the end of that; None before it begins, whatever an earlier attempt has written."""
        try:
            with open(self.log, "rb") as file:
                if os.fstat(file.fileno()).st_mtime < self.since - 1:  # a file system's clock is not so fine
                    return None
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
                return file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return None

    @property
    def last(self) -> str | None:
        """Its last line; None before it begins."""
        return None if (lines := self.lines()) is None else "".join(lines[-1:])

    def sentence(self) -> str | None:
        """Why it failed, in its own words."""
        return next((line for line in reversed(self.lines() or []) if line.startswith("gramprune: ")), None)


class LogHandler(LogHandlerBase):
    """Snakemake's events, as a person wants to see them."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        chosen = self.common_settings
        quiet = set(chosen.quiet or ())
        self.snakemakes = ColorizingTextHandler(
            chosen.nocolor,
            sys.stdout if chosen.stdout else sys.stderr,
            DefaultFormatter(quiet, chosen.show_failed_logs),
            DefaultFilter(quiet, chosen.debug_dag, chosen.verbose, chosen.dryrun, chosen.printshellcmds),
        )
        # Then Snakemake's own words, all that it was not asked to leave out.
        self.asked = chosen.dryrun or chosen.verbose or chosen.debug_dag or chosen.printshellcmds
        self.asked |= Quietness.ALL in quiet
        self.answers: list[LogRecord] = []  # of --unlock, --list-rules and others that start no workflow
        self.starts = False
        self.live: Live | None = None
        self.countdown: Any = None  # of what is to do, once that is known
        self.jobs: dict[int, Running] = {}
        self.finished, self.interrupted = 0, False
        self.failed: set[int] = set()  # jobs; one that is tried again is none of them
        self.said: set[int] = set()  # jobs of a failed group, whose sentences have been said
        self.held: list[LogRecord] = []  # how a job's process ended: not worth a word if the job says why
        self.began = time.time()
        self.ends = Event()

    def begin(self, countdown: Any) -> None:
        """From now on jobs run, those of this gramprune.experiment.countdown.Countdown, and leave the screen to us."""
        if self.asked:
            return
        with self.lock:
            self.countdown = countdown
            screen = os.fstat(sys.stderr.fileno())
            os.environ[ENVIRONMENT] = f"{screen.st_dev}:{screen.st_ino}"
            if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
                self.live = Live(sys.stderr)
                self.thread = Thread(target=self._draw_again_and_again, daemon=True)
                self.thread.start()

    def emit(self, record: LogRecord) -> None:
        """Say what a person wants to know of this event. What goes wrong with that stops neither us nor a job."""
        try:
            self._tell(record)
        except Exception:
            self.handleError(record)

    def _tell(self, record: LogRecord) -> None:
        event = getattr(record, "event", None)
        if self.asked:
            self.snakemakes.handle(record)
        elif event == LogEvent.WORKFLOW_STARTED:
            self.starts = True
        elif event == LogEvent.JOB_INFO:
            self._job_started(record)
        elif event == LogEvent.JOB_FINISHED:
            self._job_finished(self.jobs.pop(record.job_id, None))
        elif event == LogEvent.JOB_ERROR:
            self._job_failed(record)
        elif event == LogEvent.GROUP_ERROR:
            self._group_failed(record)
        elif event == LogEvent.ERROR and "CalledProcessError in file" in record.getMessage():
            self.held.append(record)
        elif (self.failed or self.interrupted) and record.getMessage().startswith(ECHOES):
            pass
        elif record.levelno >= WARNING or record.getMessage().startswith(ANSWERS):
            self.interrupted |= record.getMessage().startswith(ENDING)
            self._snakemake_says(record)
        elif not self.starts and record.levelno >= INFO and not record.getMessage().startswith(ROUTINE):
            self.answers.append(record)

    def close(self) -> None:
        """Say what is left to say, and leave the screen clean."""
        self.ends.set()
        with self.lock:
            for record in self.held:  # of processes whose jobs were not heard of
                self._snakemake_says(record)
            self.held = []
            for record in self.answers if not self.starts else ():
                self._snakemake_says(record)
            self.answers = []
            if self.live:
                self.live.draw([])
                self._say(", ".join([*self._counted(), f"{clock(time.time() - self.began)} in all"]))
                self.live = None
        super().close()

    def _job_started(self, record: LogRecord) -> None:
        self.failed.discard(record.jobid)
        if record.log:
            log = Path(record.log[0])
            words = self.countdown.words(log) if self.countdown else ""
            self.jobs[record.jobid] = Running(log, words, record.local)
            if self.countdown:
                self.countdown.start(log)

    def _job_finished(self, job: Running | None) -> None:
        if job is None or not self.countdown:
            return
        self.finished += 1
        self.countdown.finish(job.log)
        if self.live is None:
            left = self._left()
            self._say(f"{job.last or job.words}; {self.finished} of {self.countdown.total}" + f", {left}" * bool(left))

    def _job_failed(self, record: LogRecord) -> None:
        """Its own sentence, or what Snakemake knows: of a job that was killed, or never came to be."""
        job = self.jobs.pop(record.jobid, None)
        if interrupted := [held for held in self.held if any(end in held.getMessage() for end in INTERRUPTED)]:
            self.held.remove(interrupted[0])
            self.interrupted = True
            self._say(f"{(job and job.words) or record.rule_name}: interrupted")
            return
        self.failed.add(record.jobid)
        if record.jobid in self.said:
            self.said.remove(record.jobid)
        elif job and (sentence := job.sentence()):
            self._own_words(job, sentence)
        else:
            for held in self.held:
                self._snakemake_says(held)
            self.held = []
            self._snakemake_says(record)

    def _group_failed(self, record: LogRecord) -> None:
        """The sentences of those of its jobs that have one: the others did not fail, or did not begin."""
        numbers = [info["jobid"] for info in record.job_error_info]
        told = [(job, job.sentence()) for number in numbers if (job := self.jobs.get(number))]
        if not any(sentence for _, sentence in told):
            self._snakemake_says(record)
        for job, sentence in told:
            if sentence:
                self._own_words(job, sentence)
        self.said.update(numbers)

    def _own_words(self, job: Running, sentence: str) -> None:
        del self.held[:1]
        if self.countdown:  # else it has said so itself
            self._say(sentence)
        self._say(f"    log: {job.log}")

    def _snakemake_says(self, record: LogRecord) -> None:
        if self.live:
            self.live.draw([])
        self.snakemakes.handle(record)

    def _say(self, text: str) -> None:
        if self.live:
            self.live.draw([])
        print(text, file=sys.stderr, flush=True)

    def _counted(self) -> list[str]:
        failed = [f"{len(self.failed)} failed"] if self.failed else []
        return [f"{self.finished} of {self.countdown.total} jobs done", *failed]

    def _left(self) -> str:
        """How long it will take; jobs under way may know that best."""
        for job in self.jobs.values():
            self.countdown.hear(job.log, job.last or "")
        left = self.countdown.left()
        return f"about {left} left" if left else ""

    def _draw_again_and_again(self) -> None:
        while not self.ends.wait(EVERY):
            with self.lock:
                if self.live and not self.ends.is_set():
                    with suppress(OSError):  # the terminal was closed
                        self.live.draw(self._picture())

    def _picture(self) -> list[str]:
        """How far it is, and a line for each job under way."""
        spent = f"{clock(time.time() - self.began)} so far"
        rows = [", ".join(filter(None, [*self._counted(), self._left(), spent]))]
        for job in self.jobs.values():
            nothing = "starting" if job.local else "waiting to begin"
            rows.append(f"  {job.words}  {clock(time.time() - job.since)}  {nothing if job.last is None else job.last}")
        return rows
