"""Models and texts as sections of config.yaml: where they are read from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gramprune.experiment.names import Name, Place, slug
from gramprune.experiment.options import Positive, Section
from gramprune.model.demo import DEMOS
from gramprune.storage.fingerprint import short


class Model(Section):
    """A model: one that is trained here, a local folder or a hub id, given as a text or with these keys."""

    source: Place = Field(
        description=f"{', '.join(f'`{name}`' for name in DEMOS)} (small, trained by the workflow), a folder (starting "
        "with `/`, `./`, `../` or `~`), or a hub id."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub; the commit is recorded.")
    name: Name = Field(
        "", description="Folder in results; by default the last part of the source.", validate_default=False
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        value = {"source": value} if isinstance(value, str) else value
        if isinstance(value, dict) and isinstance(value.get("source"), str):
            source = value["source"].rstrip("/") or value["source"]
            name = slug(Path(source).name) or slug(Path(os.path.expanduser(source)).resolve().name)
            return {"name": name or f"model-{short(source)}", **value, "source": source}
        return value

    @property
    def kind(self) -> str:
        """ "demo", "folder" or "hub"."""
        if self.source in DEMOS:
            return "demo"
        looks_like = self.source.startswith(("/", ".", "~")) or self.source.count("/") > 1
        is_folder = looks_like or Path(self.source).is_dir()
        return "folder" if is_folder else "hub"

    @property
    def location(self) -> str:
        """The folder or hub id."""
        return self.source


class Dataset(Section):
    """Text: local files, or a dataset of the hub."""

    path: Place | Annotated[list[Place], Field(min_length=1)] | None = Field(
        None,
        description="A local file, or a list of them: .txt (one document), .jsonl, .json, .csv, .tsv (each also .gz, "
        ".zst, .bz2), or .parquet.",
    )
    hub: str | None = Field(None, description="A dataset's id on the hub, such as `allenai/c4`.")
    config: str | None = Field(None, description="The hub dataset's configuration, such as `wikitext-2-raw-v1`.")
    files: str | None = Field(None, description="Only this file of the hub dataset, such as C4's first shard.")
    split: str = Field("train", description="The hub dataset's split.")
    revision: str | None = Field(None, description="Branch, tag or commit of the hub dataset.")
    field: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Where the documents are: text, a list of messages, or token ids; `a.b` is b inside a. By default "
        "the first of text, messages, conversations and input_ids that there is. Not for .txt.",
    )
    documents: Positive | None = Field(None, description="Read only so many documents.")
    separator: str | None = Field(
        None,
        description="Put between documents that are joined. By default perplexity takes an empty line and packing the "
        "tokenizer's EOS; nothing is put between conversations, nor between token ids in perplexity.",
    )
    demo: Literal["train", "heldout"] | None = Field(None, json_schema_extra={"internal": True})

    @model_validator(mode="after")
    def _one_source(self) -> Dataset:
        if bool(self.path) + bool(self.hub) + bool(self.demo) != 1:
            raise ValueError("a dataset has either `path` or `hub`")
        if self.path:
            for key in ("config", "files", "split", "revision"):
                if key in self.model_fields_set and getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"`{key}` is for datasets of the hub, but this one is a local file; leave it out")
            if self.field and any(".txt" in Path(path).suffixes for path in self.paths):
                raise ValueError(f"`field` is {self.field!r}, but a .txt file has no fields; leave it out")
        return self

    @property
    def paths(self) -> list[str]:
        """The local files."""
        return [self.path] if isinstance(self.path, str) else self.path or []

    @property
    def source_settings(self) -> dict[str, Any]:
        """All that its documents depend on."""
        return self.model_dump(exclude={"separator"})


EMBEDDED = {"demo": Dataset(demo="train"), "demo_heldout": Dataset(demo="heldout")}
