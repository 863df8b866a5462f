"""Fetch a model. The stage may use the network; what follows finds a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError
from gramprune.storage import files
from gramprune.text import sources


def fetch_model(manifest: Path, folder: Path, settings: dict[str, Any], code: str) -> str:
    """Write the model's manifest: folder, source, exact revision, fingerprint.

    settings: kind, source, revision. folder: where a demo model is trained into.
    """
    found = sources.fetch_model(settings["kind"], settings["source"], settings["revision"], Path(folder))
    files.write_json(manifest, {**found, "settings": settings, "code": code})
    return f"{found['folder']}, fingerprint {found['fingerprint']}"


def manifest_of(model: Path) -> dict[str, Any]:
    """The manifest that `fetch_model` wrote. Raises GrampruneError if its folder is gone."""
    manifest = files.read_json(model)
    if not Path(manifest["folder"]).is_dir():
        raise GrampruneError(
            f"{model} says that the model is in {manifest['folder']}, which is not there any more; fetch it again "
            f"with `snakemake --forcerun {model}`."
        )
    return manifest
