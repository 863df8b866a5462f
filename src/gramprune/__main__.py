"""gramprune check FILE looks at a configuration; summary prints the table of runs; report shows several experiments."""

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
    check = commands.add_parser("check", help="say what is wrong with a configuration; nothing in it is run")
    check.add_argument("config", nargs="?", default="config.yaml", type=Path, help="its file (config.yaml)")
    report = commands.add_parser("report", help="one report of one or several folders of results")
    report.add_argument("results", nargs="+", type=Path, help="folders of results, of other experiments or machines")
    report.add_argument("-o", "--output", default="report.html", type=Path, help="the page (report.html)")
    report.add_argument("--pictures", type=Path, help="folder for the pictures as SVG (beside the page)")
    arguments = parser.parse_args()
    try:
        if arguments.command == "check":
            check_config(arguments.config)
        elif arguments.command == "summary":
            show_summary(arguments.results)
        else:
            show_report(arguments.results, arguments.output, arguments.pictures)
    except GrampruneError as error:
        sys.exit(f"gramprune: {error}")


def check_config(path: Path) -> None:
    """Say what is wrong with a file of settings, or how much it asks for."""
    from gramprune.experiment import configfile, settings

    chosen = settings.load(configfile.read(path))
    names = ", ".join(model.name for model in chosen.model)
    print(f"{path}: {len(chosen.runs)} runs of {names}; `snakemake -n` looks at models and texts too")


def show_report(folders: list[Path], html: Path, pictures: Path | None) -> None:
    """Write the page of several folders of results, and its pictures beside it."""
    if not html.name:
        raise GrampruneError(f"{html} is no file; name one for the page.")
    from gramprune.report import write_report

    pictures = pictures or html.with_name(f"{html.stem}_pictures")
    write_report(folders, html, pictures)
    print(f"{html}, {pictures}/")


def show_summary(folder: Path) -> None:
    """Print the summary as a table with the dense row on top, and the paths of what was made."""
    from gramprune.report.results import as_text, read_summary

    rows = read_summary(folder / "summary.parquet")
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
