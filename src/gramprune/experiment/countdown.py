"""How long the jobs under way and those behind them will take, by the measure of `status`, while the workflow runs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gramprune.experiment import outputs, pipeline
from gramprune.experiment.measured import times
from gramprune.experiment.pipeline import Job, Key
from gramprune.experiment.settings import Settings
from gramprune.experiment.status import described, expected
from gramprune.progress import duration

EVERY = 1.0  # seconds between two looks
LEFT = re.compile(r"\b([\d.]+) (s|min|h) left$")  # as gramprune.progress ends its lines
SECONDS = {"s": 1, "min": 60, "h": 3600}
LATE = 0.1  # a job that takes longer than expected will take as much more of what it took


class Countdown:
    """Of the jobs that are to be done now; each is known by its log."""

    def __init__(self, settings: Settings, layouts: dict[str, dict[str, Any]], logs: Iterable[Path], at_once: int):
        """logs: of all jobs to do. at_once: how many jobs can compute side by side."""
        self.settings, self.at_once = settings, max(1, at_once)
        self.models = len(layouts)
        self.trained = {("fetch_model", model.name) for model in settings.model if model.kind == "demo"}
        self.work = pipeline.jobs(settings, layouts)
        self.keys = {f"{outputs.stem(key)}.log": key for key in self.work}
        self.taken = times(Path(settings.results), self.work)
        logs = list(logs)
        self.total = len(logs)
        self.waiting = {key for log in logs if (key := self._key(log))}
        self.since: dict[Key, float] = {}
        self.said: dict[Key, tuple[str, float]] = {}  # a job's last line, and when it will end by that
        self.looked, self.seconds = 0.0, 0.0

    def start(self, log: Path) -> None:
        """This job begins."""
        if key := self._key(log):
            self.since[key] = time.time()
            self.said.pop(key, None)

    def hear(self, log: Path, line: str) -> None:
        """The last line of a job under way, which may say how long it will take: it knows best."""
        if (found := LEFT.search(line)) and (key := self._key(log)) and self.said.get(key, ("",))[0] != line:
            self.said[key] = line, time.time() + float(found[1]) * SECONDS[found[2]]

    def finish(self, log: Path) -> None:
        """This job has ended well, and left a record of what it took."""
        if key := self._key(log):
            self.waiting.discard(key)
            self.taken |= times(Path(self.settings.results), {key: self.work[key]})

    def left(self) -> str:
        """The wall time that is left, for people; nothing where nothing is."""
        if not self.waiting:
            return ""
        now = time.time()
        if now - self.looked > EVERY:
            self.looked, self.seconds = now, self._makespan(now)
        fine = next(step for step, limit in ((1, 99.5), (60, 5970), (360, float("inf"))) if self.seconds < limit)
        return duration(max(1, round(self.seconds / fine) * fine))

    def words(self, log: Path) -> str:
        """A job in words, such as `update of block 7, wanda-2of4`."""
        if not (key := self._key(log)):
            return log.stem
        if key in self.trained:
            return f"training of {key[1]}"
        named = [part for place, part in enumerate(key[1:]) if isinstance(part, str) and (place or self.models > 1)]
        if len(key) == 2 and self.models == 1:
            named = list(key[1:])
        if key[0] in ("mask", "refine"):
            named.remove(key[2])  # its mask's name says what it is; runs share it
            if key[2] != "dense":
                named.append(f"for {key[2]}")
        return ", ".join([described(key), *named])

    def _key(self, log: Path) -> Key | None:
        """The job with this log: somewhere below a folder `logs`, which may be reached through a link."""
        parts = log.parts
        tails = ("/".join(parts[place + 1 :]) for place, part in enumerate(parts) if part == "logs")
        return next((self.keys[tail] for tail in tails if tail in self.keys), None)

    def _makespan(self, now: float) -> float:
        """Seconds until the last of the waiting jobs ends."""
        seconds = expected(self.work, self.taken, self.settings)
        for key, since in self.since.items():
            spent = now - since
            end = self.said[key][1] if key in self.said else since + seconds[key]
            seconds[key] = max(end - now, LATE * spent)
        left = {
            key: Job(
                replace(job.need, start=seconds[key]), tuple(parent for parent in job.after if parent in self.waiting)
            )
            for key, job in self.work.items()
            if key in self.waiting
        }
        return pipeline.makespan(left, lambda need: need.start, self.at_once)
