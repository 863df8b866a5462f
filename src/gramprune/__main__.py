"""gramprune summary [RESULTS] prints the table of runs; gramprune report DIR... puts several into one report."""

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
    report = commands.add_parser("report", help="one report of one or several folders of results")
    report.add_argument("results", nargs="+", type=Path, help="folders of results, of other experiments or machines")
    report.add_argument("-o", "--output", default="report.html", type=Path, help="the page (report.html)")
    report.add_argument("--pictures", type=Path, help="folder for the pictures as SVG (beside the page)")
    arguments = parser.parse_args()
    try:
        if arguments.command == "summary":
            show_summary(arguments.results)
        else:
            from gramprune.report import write_report

            pictures = arguments.pictures or arguments.output.with_name(f"{arguments.output.stem}_pictures")
            write_report(arguments.results, arguments.output, pictures)
            print(f"{arguments.output}, {pictures}/")
    except GrampruneError as error:
        sys.exit(f"gramprune: {error}")


def show_summary(folder: Path) -> None:
    """Print the summary as a table with the dense row on top, and the paths of what was made."""
    table = folder / "summary.parquet"
    if not table.exists():
        raise GrampruneError(f"{table} does not exist: run snakemake first, or name the folder of results.")
    import pyarrow.parquet as parquet

    from gramprune.report.results import as_text

    rows = parquet.read_table(table).to_pylist()
    print(as_text(rows))
    print()
    made = {
        "report": "report.html",
        "pictures": "pictures/",
        "tables": "summary.csv, summary.parquet, summary.md, summary.tex, layers.parquet",
        "checkpoints": "<model>/<run>/checkpoint",
    }
    for what, names in made.items():
        paths = [f"{folder}/{name}" for name in names.split(", ") if "<" in name or (folder / name).exists()]
        if paths:
            print(f"{what + ':':<13}{', '.join(paths)}")


if __name__ == "__main__":
    main()
