"""The manifest of a model that was fetched: which folder it is in, from where, and its fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError
from gramprune.storage import files


def manifest_of(model: Path) -> dict[str, Any]:
    """The manifest that `fetch_model` wrote. Raises GrampruneError if its folder is gone."""
    manifest = files.read_json(model)
    if not Path(manifest["folder"]).is_dir():
        raise GrampruneError(
            f"{model} says that the model is in {manifest['folder']}, which is not there any more; fetch it again "
            f"with `snakemake --forcerun {model}`."
        )
    return manifest
