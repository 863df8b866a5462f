"""The report of one folder of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gramprune.report import write_report


def report(results: Path, html: Path, pictures: Path, settings: dict[str, Any], code: str) -> None:
    """Write the page and its pictures. settings: none; everything is in the folder."""
    write_report([results], html, pictures)
