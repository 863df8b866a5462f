"""Content hashes: of our code per stage, and of settings.

Snakemake does not see a change in an imported module. So every rule has the digest of the modules that its stage
imports as a parameter: a change in one method reruns what uses that method, a comment reruns nothing.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]  # of the package `gramprune`


def canonical(settings: Any) -> str:
    """Settings as one string that does not depend on the order of keys."""
    return json.dumps(settings, sort_keys=True, ensure_ascii=False)


def short(text: str) -> str:
    """Eight hexadecimal digits that stand for a text in a file name."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def code(*modules: str) -> str:
    """Digest of those modules ("gramprune.stages.mask") and all of our modules that they import.

    The whole package's `__init__` does not count: it only re-exports.
    """
    found: dict[str, str] = {}
    queue = list(modules)
    while queue:
        module = queue.pop()
        if module not in found:
            found[module], imports = _read_module(module)
            queue.extend(imports)
    return hashlib.sha256(canonical(found).encode()).hexdigest()[:16]


@cache
def _read_module(module: str) -> tuple[str, tuple[str, ...]]:
    """Digest of one module's code without comments and docstrings, and which of ours it imports."""
    tree = ast.parse(_path(module).read_text(encoding="utf-8"))
    imports: set[str] = set()
    nodes: Iterable[Any] = ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            imports.update(_ours(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from package import name`: the name may be a module
            imports.update(_ours([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]))
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Strings that stand alone are documentation, wherever they stand.
            node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), tuple(sorted(imports))


def _path(module: str) -> Path:
    path = ROOT.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _ours(modules: Iterable[str]) -> list[str]:
    return [name for name in modules if name.startswith("gramprune.") and _path(name).exists()]
