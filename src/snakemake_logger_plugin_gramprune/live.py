"""A few lines at the bottom of a terminal, which are drawn again and again."""

from __future__ import annotations

import shutil
from typing import TextIO

MOST = 12  # lines


class Live:
    """The lines that stand at the bottom."""

    def __init__(self, stream: TextIO):
        self.stream, self.height = stream, 0

    def draw(self, lines: list[str]) -> None:
        """These lines instead of those before, each cut at the terminal's width; no lines take them away."""
        width, height = shutil.get_terminal_size()
        most = max(1, min(MOST, height - 2))
        if len(lines) > most:
            lines = [*lines[: most - 1], f"  and {len(lines) - most + 1} more"]
        up = f"\x1b[{self.height}A" if self.height else ""
        shown = "".join(f"{line.expandtabs(1)[: width - 1]}\n" for line in lines)
        # To the begin of the first line, everything below away, and the new ones.
        if up or shown:
            self.stream.write(f"\r{up}\x1b[J{shown}")
            self.stream.flush()
        self.height = len(lines)


def clock(seconds: float) -> str:
    """Seconds as 0:07, or 1:02:07."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
