"""Measured figures as dated files, and the tables in README and docs that are made from them.

    python benchmarks/tables.py            writes the tables of all documents again
    python benchmarks/tables.py --check    only says which would change, and fails if one would

A benchmark with `--keep NAME` writes benchmarks/results/YYYY-MM-DD-NAME.json: figures as they were measured, with the
command, the machine and the versions. A document names the file in a comment above a table, which stands until the next
empty line:

    <!-- benchmarks/results/2026-11-27-peers.json -->

A file has `columns`, each with a format of Python's or "" for text, and `rows` of as many values; None is an empty
cell.
"""

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
PACKAGES = ("torch", "transformers", "snakemake")
TABLE = re.compile(r"(?m)^<!-- (benchmarks/results/\S+\.json) -->\n+(?:\|.*\n)*\n*")


def main() -> None:
    check, changed = "--check" in sys.argv, False
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        if (new := filled(text)) != text:
            changed = True
            print(f"{path.relative_to(ROOT)}: other figures than in benchmarks/results")
            if not check:
                path.write_text(new)
    sys.exit(check and changed)


def filled(text: str) -> str:
    """A document with its tables as the files of results say."""
    read = lambda name: json.loads((ROOT / name).read_text())  # noqa: E731
    return TABLE.sub(lambda found: f"<!-- {found[1]} -->\n\n{markdown(read(found[1]))}\n\n", text)


def markdown(kept: dict) -> str:
    """The table of a file of results."""
    columns, rows = kept["columns"], kept["rows"]
    shown = [[cell(value, form) for value, form in zip(row, columns.values(), strict=True)] for row in rows]
    rule = ["--:" if form else "---" for form in columns.values()]
    return "\n".join("| " + " | ".join(line) + " |" for line in (list(columns), rule, *shown))


def cell(value: float | str | None, form: str) -> str:
    return "" if value is None else value if isinstance(value, str) else format(value, form)


def keep(name: str | None, columns: dict[str, str], rows: list[list], load: float | None = None) -> None:
    """Print a table and, with a name, keep its figures; `load` is what the machine did before."""
    kept = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", Path(sys.argv[0]).name, *map(plain, sys.argv[1:])]),
        "machine": {**machine(), "load_before": load},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "commit": commit(),
        "columns": columns,
        "rows": rows,
    }
    print(markdown(kept))
    if name:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{kept['date']}-{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def plain(word: str) -> str:
    """A word of a command, without the folders of one machine."""
    return Path(word).name if os.path.isabs(word) else word


def machine() -> dict:
    """What figures of time depend on."""
    processor, about = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if about.exists() and (found := re.search(r"model name\s*: (.+)", about.read_text())):
        processor = found[1]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": processor, "cores": os.cpu_count(), "memory_gib": round(memory), "system": platform.system()}


def commit() -> str:
    """Of the code that was measured; with `+` where it has changes."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=10"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
