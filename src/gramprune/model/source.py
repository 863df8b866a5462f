"""Where models come from. Besides the texts' sources, only this module uses the network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError, first_line, suggest
from gramprune.model import folder as folders
from gramprune.model.demo import DEMOS

log = logging.getLogger(__name__)
SMALL = ("config.json", "*.json", "*.model", "*.txt", "*.jinja", "LICENSE*", "NOTICE*", "USE_POLICY*", "README.md")


def config(kind: str, source: str, revision: str | None) -> dict[str, Any]:
    """The config.json of a model of kind "folder", "hub" or "demo"; for the hub, that one file is fetched.

    Raises GrampruneError if there is none.
    """
    if kind == "demo":
        return DEMOS[source].config
    if kind == "folder":
        if not Path(source).is_dir():
            raise GrampruneError(f"model: the folder {source} does not exist; give a model folder or a hub id.")
        return folders.read_config(Path(source))
    if source.lower().startswith("demo") and "/" not in source:  # nobody's on the hub: do not wait for its network
        raise GrampruneError(f"model: no model {source!r} is trained here; {suggest(source, DEMOS)}")
    from huggingface_hub import hf_hub_download

    log.info("Model %s: its config.json is looked for in the hub's cache and on the hub.", source)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each try twice; the sentence below says it once
    try:
        path = Path(hf_hub_download(source, "config.json", revision=revision))
    except Exception as error:  # of a dozen kinds, by what is wrong with the name, the network or the rights
        raise GrampruneError(
            f"model: config.json of {source} (revision {revision or 'main'}) could not be fetched from the hub: "
            f"{first_line(error)} If a folder is meant, there is none of that name here; if a hub id, check the "
            "name, your network and, for gated models, `hf auth login`."
        ) from error
    return folders.read_config(path.parent)


def fetch(source: str, revision: str | None) -> Path:
    """The folder of a hub model in the hub's cache, which is shared and resumes; only the files that are the model."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=[*SMALL], ignore_patterns=["*/*"]))
        index = folder / folders.INDEX
        weights = folders.indexed(folder) if index.exists() else []
        return Path(snapshot_download(source, revision=revision, allow_patterns=[*SMALL, folders.SINGLE, *weights]))
    except GrampruneError:
        raise
    except Exception as error:
        raise GrampruneError(
            f"model: {source} (revision {revision or 'main'}) could not be fetched from the hub: {first_line(error)} "
            "What was downloaded is kept; run again to go on."
        ) from error
