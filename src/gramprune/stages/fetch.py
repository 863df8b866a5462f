"""Fetch a model. The stage may use the network; what follows finds a local folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from gramprune.model import source
from gramprune.model.folder import fingerprint, read_config
from gramprune.storage import files

log = logging.getLogger(__name__)


def fetch_model(manifest: Path, folder: Path, settings: dict[str, Any], code: str) -> str:
    """Have a model's files on this machine, and write its manifest: folder, source, exact revision, fingerprint.

    demo: trained into `folder`. hub: into the hub's cache, and checked. folder: used where it lies, as planning
    checked it.
    settings: kind, source, revision.
    """
    found = dict(settings)
    if settings["kind"] == "demo":
        from gramprune.model import demo
        from gramprune.text.demo import documents

        texts, heldout = documents(heldout=False), documents(heldout=True)
        with files.atomic_folder(Path(folder)) as part:
            found["training"] = demo.train(part, settings["source"], texts, heldout, report=log.info)
    elif settings["kind"] == "hub":
        from gramprune.model import inspect, layout

        folder = source.fetch(settings["source"], settings["revision"])
        found["revision"] = folder.name
        inspect.check(folder, layout.describe(read_config(folder)))
    else:
        folder = Path(settings["source"])
    found |= {"folder": str(folder), "fingerprint": fingerprint(Path(folder))}
    files.write_json(manifest, {**found, "settings": settings, "code": code})
    return f"{found['folder']}, fingerprint {found['fingerprint']}"
