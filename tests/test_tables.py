"""Tables in README and docs say what was measured: they are read here without the code that writes them."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KEPT = sorted((ROOT / "benchmarks/results").glob("*.json"))


def tables() -> dict[str, list[list[str]]]:
    """Cells of every table below a comment that names a file of results, by that name; the rule is left out."""
    found = {}
    for document in DOCUMENTS:
        name = None
        for line in document.read_text().splitlines():
            if comment := re.fullmatch(r"<!-- benchmarks/results/(.+) -->", line):
                name = comment[1]
                found[name] = []
            elif name and line.startswith("|"):
                found[name].append([cell.strip() for cell in line.strip("|").split("|")])
            elif line:
                name = None
    return {name: [head, *rows] for name, (head, _, *rows) in found.items()}


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_document_shows_what_was_measured(path):
    kept, shown = json.loads(path.read_text()), tables()
    assert path.name in shown, f"no document shows {path.name}"
    head, *rows = shown[path.name]
    assert head == list(kept["columns"]) and len(rows) == len(kept["rows"])
    for row, figures in zip(rows, kept["rows"], strict=True):
        for cell, figure in zip(row, figures, strict=True):
            if not isinstance(figure, int | float):
                assert cell == (figure or "")
                continue
            digits = cell.rstrip("%").replace(",", "")
            unit = 10.0 ** -len(digits.partition(".")[2])
            measured = 100 * figure if cell.endswith("%") else figure
            assert abs(float(digits) - measured) <= 0.500001 * unit, (row, figure)


def test_every_table_has_its_file():
    assert {path.name for path in KEPT} >= set(tables())


def test_the_command_that_writes_the_tables_finds_nothing_to_change():
    command = [sys.executable, str(ROOT / "benchmarks/tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
