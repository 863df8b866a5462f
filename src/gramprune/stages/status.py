"""Say how far an experiment is."""

from __future__ import annotations

from typing import Any

from gramprune.experiment import checks
from gramprune.experiment.status import status


def show(settings: dict[str, Any], code: str) -> None:
    """Print the status. settings: the whole configuration."""
    print(status(*checks.check(settings, planning=True)))
