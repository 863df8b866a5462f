"""The text that the embedded models are trained, calibrated and measured on: what every Python installation carries.

Every module of the standard library is a document, and so is every topic of `pydoc_data.topics`, whose
English is one large dict. Left out are tests, tables of character codes, and parts that some distributions
ship separately or that newer Pythons lack, so that most installations train on nearly the same text. Topics
quote one another; a paragraph stays only in the longest topic that has it. Held out, by a hash of the name,
are about 9 % of the modules' text (a package or a top-level module at a time) and about 9 % of the topics'
(a topic at a time). The text is that of the running Python, so another version of Python gives another
model.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from gramprune.errors import GrampruneError

# Not in the corpus: tests, data tables, and what some systems package separately (tkinter, idlelib) or newer
# Pythons lack (distutils, lib2to3).
SKIPPED = {
    "__pycache__",
    "distutils",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "test",
    "tests",
    "tkinter",
    "turtle.py",
    "turtledemo",
}
SHORTEST = 400
HELDOUT_SHARE = 0.09
# The hash's salt, chosen so that no single package dominates the held-out text.
SALT = "462"


def documents(heldout: bool) -> list[str]:
    """The corpus's texts, one per module or topic: the held-out ones, or those to train and calibrate on.

    They come in the order of their names' hashes, so that any beginning of the list is a mixture of subjects.
    """
    return [document.text for document in _corpus() if document.heldout == heldout]


def cloze(items: int = 400) -> list[dict[str, Any]]:
    """Items of a cloze task from the held-out texts: which of four words comes next?

    `context` (240 characters), four `choices` (words of the same text that begin alike; only the right one was in the
    context before) and `gold`, its place. Without the context one is right once in four.
    `workflow/tasks/demo_cloze.jsonl` holds them.
    """
    generator = random.Random(0)
    texts = [text for text in documents(heldout=True) if len(text) > 4000]
    seen = "\n".join(documents(heldout=False))
    found: list[dict[str, Any]] = []
    while len(found) < items:
        text = generator.choice(texts)
        words = [word for word in re.finditer(r" [A-Za-z]{3,}", text) if word.start() >= 240]
        word = generator.choice(words)
        context = text[word.start() - 240 : word.start()]
        others = sorted({other[0] for other in words if other[0][:2] == word[0][:2] and other[0] not in context})
        # Licences and the like are in many modules.
        if word[0] in context and len(others) >= 3 and context + word[0] not in seen:
            choices = generator.sample([word[0], *generator.sample(others, 3)], 4)
            found.append({"context": context, "choices": choices, "gold": choices.index(word[0])})
    return found


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, in every process (Python's `hash` is salted)."""
    return int.from_bytes(hashlib.sha256(f"{SALT}/{name}".encode()).digest()[:8], "big") / 2**64


@cache
def _corpus() -> list[_Document]:
    found = []
    for name, text in _modules().items():
        unit = name.partition(".")[0]  # a package is held out as a whole
        found.append(_Document(name, text, _hash(unit) < HELDOUT_SHARE))
    for name, text in _topics().items():
        found.append(_Document(f"topic {name}", text, _hash(f"topic {name}") < HELDOUT_SHARE))
    return sorted(found, key=lambda document: (_hash(document.name), document.name))


def _modules() -> dict[str, str]:
    """The sources of the standard library's modules, by dotted name."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = {}
    for directory, children, files in os.walk(root):
        # site-packages, config-3.11-... and the like are no packages.
        children[:] = sorted(name for name in children if name.isidentifier() and name not in SKIPPED)
        for file in sorted(files):
            if not file.endswith(".py") or file in SKIPPED or file.startswith("_sysconfigdata"):
                continue
            path = Path(directory, file)
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if len(text) >= SHORTEST and not _is_table(text):
                texts[".".join(path.relative_to(root).with_suffix("").parts)] = text
    if len(texts) < 100:
        raise GrampruneError(
            f"The demo model is trained on the standard library's sources, but {root} holds only {len(texts)}"
            " modules as .py files; use a Python installed with its sources, or name another model."
        )
    return texts


def _is_table(text: str) -> bool:
    """Whether a source is a table of character codes: more than a tenth digits and backslashes."""
    return sum(map(text.count, "0123456789\\")) > 0.1 * len(text)


def _topics() -> dict[str, str]:
    """The topics of Python's reference manual, each paragraph only in the longest topic that has it."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise GrampruneError(
            "The demo model is trained on the manual's topics, but this Python has no pydoc_data.topics;"
            " install Python's full standard library, or name another model."
        ) from error

    texts = {}
    seen: set[str] = set()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        kept = []
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            key = " ".join(paragraph.split())
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
        text = "\n\n".join(kept).strip() + "\n"
        if len(text) >= SHORTEST:
            texts[name] = text
    return texts


class _Document(NamedTuple):
    name: str
    text: str
    heldout: bool
