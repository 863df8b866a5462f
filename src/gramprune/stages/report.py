"""The report of one folder of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gramprune.report import write_report


def report(results: Path, html: Path, pictures: Path, settings: dict[str, Any], code: str) -> str:
    """Write the page and its pictures. Return where it is. settings: none."""
    write_report([results], html, pictures)
    return f"{html}, {Path(html).stat().st_size / 1e6:.1f} MB"
