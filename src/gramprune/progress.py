"""How far a long loop is: a line in the log every ten seconds, with speed and the time that is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

log = logging.getLogger(__name__)
EVERY = 10.0  # seconds

Item = TypeVar("Item")


def progress(
    items: Iterable[Item],
    what: str,
    size: float = 1,  # of every item,
    unit: str = "",  # in this unit; without one, items are counted
    total: int | None = None,  # items; by default their length
) -> Iterator[Item]:
    """The items, with a line in the log now and then while they are worked on."""
    total = len(items) if total is None else total  # type: ignore[arg-type]
    started = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last > EVERY:
            last = now
            speed = done / (now - started)
            rate = f", {speed * size:,.0f} {unit}/s" if unit else ""
            log.info("%s: %d of %d%s, %s left", what, done, total, rate, duration((total - done) / speed))
        yield item


def duration(seconds: float) -> str:
    """Seconds in the unit in which they are easiest to read."""
    for unit, length, limit in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 172800)):
        if seconds < limit:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:,.1f} d"
