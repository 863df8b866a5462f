"""Where models come from: the embedded demo, local folders, the hub."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from gramprune.errors import GrampruneError
from gramprune.storage import files, fingerprint

log = logging.getLogger(__name__)


def model_config(kind: str, source: str, revision: str | None) -> dict[str, Any]:
    """The config.json of a model of kind "demo", "folder" or "hub"; for the hub, that one file is fetched.

    Raises GrampruneError if there is none.
    """
    if kind == "demo":
        from gramprune.text import demo

        return demo.config()
    if kind == "folder":
        path = Path(source) / "config.json"
        if not Path(source).is_dir():
            raise GrampruneError(f"model: the folder {source} does not exist; give a model folder or a hub id.")
        if not path.exists():
            raise GrampruneError(f"model: {source} has no config.json, so it is not a Hugging Face model folder.")
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(source, "config.json", revision=revision))
        except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
            raise GrampruneError(
                f"model: config.json of {source} (revision {revision or 'main'}) could not be fetched from the hub: "
                f"{_first_line(error)} If it is a folder, it is not there; if a hub id, check the name, your network "
                "and, for gated models, `hf auth login`."
            ) from error
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return config if isinstance(config["model_type"], str) else {}["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise GrampruneError(f"model: {path} is not a model's config.json: expected JSON with a model_type.") from error


def check_folder(source: str) -> None:
    """Raises GrampruneError for a local model without weights."""
    if not any(Path(source).glob("*.safetensors")):
        raise GrampruneError(
            f"model: {source} holds no .safetensors file; convert the checkpoint with save_pretrained first."
        )


def fetch_model(kind: str, source: str, revision: str | None, folder: Path, report=log.info) -> dict[str, Any]:
    """Make sure that the model's files are on this machine, and say where they are and what they are.

    demo: trained into `folder`. hub: into the hub's cache, which is shared and resumes. folder: used where it lies.
    Returns a manifest: folder, source, revision (the exact commit), fingerprint.
    """
    manifest: dict[str, Any] = {"kind": kind, "source": source, "revision": revision}
    if kind == "demo":
        from gramprune.text import demo

        with files.atomic_folder(folder) as part:
            manifest["training"] = demo.train(part, report=report)
    elif kind == "hub":
        folder = _snapshot(source, revision)
        manifest["revision"] = folder.name
    else:
        folder = Path(source)
    return {**manifest, "folder": str(folder), "fingerprint": fingerprint.model(folder)}


def _snapshot(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                source, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise GrampruneError(
            f"model: {source} (revision {revision or 'main'}) could not be fetched from the hub: {_first_line(error)} "
            "What was downloaded is kept; run again to go on."
        ) from error


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if line.endswith(".") else f"{line}."
