"""How far a long loop is: a line in the log every ten seconds, with speed and the time that is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

log = logging.getLogger(__name__)
EVERY = 10.0  # seconds

Item = TypeVar("Item")


class Progress:
    """A count that is told to the log now and then."""

    def __init__(self, what: str, total: float, size: float = 1, unit: str = ""):
        """Of so many items, each of so many of a unit; without a unit items are counted."""
        self.what, self.total, self.size, self.unit, self.done = what, total, size, unit, 0.0
        self.started = self.last = time.monotonic()

    def step(self, items: float = 1) -> None:
        """So many more are done."""
        self.done += items
        now = time.monotonic()
        if now - self.last > EVERY and self.done < self.total:
            self.last = now
            speed = self.done / (now - self.started)
            rate = f", {speed * self.size:,.0f} {self.unit}/s" if self.unit else ""
            left = duration(max(0.0, self.total - self.done) / speed)
            log.info("%s: %d of %d%s, %s left", self.what, self.done, self.total, rate, left)


def progress(items: Sequence[Item], what: str, size: float = 1, unit: str = "") -> Iterator[Item]:
    """The items, with a line in the log now and then while they are worked on."""
    count = Progress(what, len(items), size, unit)
    for item in items:
        yield item
        count.step()


def duration(seconds: float) -> str:
    """Seconds in the unit in which they are easiest to read."""
    for unit, length, limit in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 172800)):
        if seconds < limit:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:,.1f} d"
