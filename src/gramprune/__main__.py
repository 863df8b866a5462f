"""gramprune summary [RESULTS]: print the table of runs, and where everything is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gramprune.errors import GrampruneError


def main() -> None:
    """The command `gramprune`."""
    parser = argparse.ArgumentParser(prog="gramprune", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    summary = commands.add_parser("summary", help="print the table of runs, and where everything is")
    summary.add_argument("results", nargs="?", default="results", type=Path, help="folder of results (results)")
    arguments = parser.parse_args()
    try:
        show_summary(arguments.results)
    except GrampruneError as error:
        sys.exit(f"gramprune: {error}")


def show_summary(folder: Path) -> None:
    """Print the summary as a table with the dense row on top, and the paths of what was made."""
    table = folder / "summary.parquet"
    if not table.exists():
        raise GrampruneError(f"{table} does not exist: run snakemake first, or name the folder of results.")
    import pyarrow.parquet as parquet

    from gramprune.results import as_text

    rows = parquet.read_table(table).to_pylist()
    print(as_text(rows))
    print()
    made = {
        "tables": "summary.csv, summary.parquet, layers.parquet",
        "picture": "perplexity.svg",
        "checkpoints": "<model>/<run>/checkpoint",
        "report": "report.html",
    }
    for what, names in made.items():
        paths = [f"{folder}/{name}" for name in names.split(", ") if "<" in name or (folder / name).exists()]
        if paths:
            print(f"{what + ':':<13}{', '.join(paths)}")


if __name__ == "__main__":
    main()
