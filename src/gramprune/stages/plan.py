"""Say what an experiment will take."""

from __future__ import annotations

from typing import Any

from gramprune.experiment import checks
from gramprune.experiment.plan import plan


def show(settings: dict[str, Any], code: str) -> None:
    """Print the plan. settings: the whole configuration."""
    print(plan(*checks.check(settings, planning=True)))
