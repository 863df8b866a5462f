"""The layers of the library, read from its imports: a room imports only from floors below it."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "src/gramprune"
FLOORS = {
    "errors": 0, "interrupt": 0, "home": 0, "progress": 1, "machine": 1, "": 1,
    "pruning": 2, "storage": 2,
    "model": 3, "text": 3, "evaluation": 3,
    "experiment": 4,
    "report": 5,
    "stages": 6,
    "__main__": 7,
}  # fmt: skip
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module below the package: a folder, or a file of the root."""
    return parts[0].removesuffix(".py").removesuffix("__init__") if parts else ""


def imported(path: Path) -> set[str]:
    """What a file imports, as dotted names, wherever in it; `from a import b` may import the module a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports say where from"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def rooms_below(path: Path) -> set[str]:
    found = set()
    for name in imported(path):
        parts = tuple(name.split("."))
        if parts[0] == "gramprune" and len(parts) > 1:
            room = room_of(parts[1:])
            found.add(room if room in FLOORS else "")  # a name of the package itself
    return found


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_room_imports_only_from_floors_below_it(module):
    room = room_of(module.parts)
    for below in rooms_below(PACKAGE / module) - {room}:
        assert FLOORS[below] < FLOORS[room], f"{room} imports {below}"
    if room == "pruning":
        assert rooms_below(PACKAGE / module) <= {"pruning", "errors"}


def test_nothing_but_the_workflow_knows_snakemake():
    for module in MODULES:
        assert not any(name.split(".")[0] == "snakemake" for name in imported(PACKAGE / module)), module
