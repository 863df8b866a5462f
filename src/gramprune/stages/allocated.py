"""What an allocation gives to a block, for the stages that prune it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError
from gramprune.storage import files


def allocated(
    settings: dict[str, Any],  # of a stage: pattern, one for all linears of the block or by linear; and others
    allocation: Path | None,
    model: str,  # fingerprint
    block: int,
) -> dict[str, Any]:
    """The same settings with the allocation's fractions; what is N:M or dense stays so.

    Raises GrampruneError for an allocation of another model, and one that is none.
    """
    if allocation is None:
        return settings
    content = files.read_json(allocation)
    try:
        if content["stage"] != "allocate" or content["model"] != model:
            raise LookupError
        fractions = {name: float(fraction) for name, fraction in content["blocks"][block].items()}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise GrampruneError(
            f"{allocation} is not an allocation for block {block} of this model: it was put there by hand or is "
            "damaged; delete it to have it made again."
        ) from error
    given = settings["pattern"]
    return {**settings, "pattern": {**given, **fractions} if isinstance(given, dict) else fractions or given}
