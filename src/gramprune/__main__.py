"""Prune large language models: what people type beside snakemake.

gramprune new ./my-model > my.yaml             a commented configuration that fits the model and this machine
gramprune check my.yaml                        all that is wrong with it, and the runs that it makes
gramprune plan my.yaml                         jobs, memory, disk and time, before anything is downloaded
gramprune run my.yaml                          prune: snakemake --profile local --configfile my.yaml
gramprune status my.yaml                       how far it is, and how long the rest will take
gramprune summary results/my-model             the table of runs
gramprune tidy my.yaml                         remove what finished runs no longer need
gramprune report results/a results/b           one page of several experiments
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from gramprune import __version__, home, interrupt
from gramprune.errors import GrampruneError


def main() -> None:
    """The command `gramprune`."""
    signal.signal(signal.SIGINT, interrupt.at_once)
    run(sys.argv[1:])


def run(typed: list[str]) -> None:
    """Do what was typed; what cannot be done ends in a sentence."""
    if typed[:1] == ["run"] and not {"-h", "--help"} & set(typed):
        return execute(typed[1:])  # whatever snakemake knows may follow
    arguments = vars(parser().parse_args(typed))
    command = arguments.pop("call")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("gramprune").setLevel(logging.INFO)  # torch would tell of its caches
    try:
        command(**arguments)
    except GrampruneError as error:
        sys.exit("\n".join(f"gramprune: {line}" for line in str(error).splitlines()))
    except BrokenPipeError:  # into `head`
        sys.stderr.close()


def parser() -> argparse.ArgumentParser:
    """What can be typed."""
    whole = argparse.ArgumentParser("gramprune", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    whole.add_argument("--version", action="version", version=f"gramprune {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(call: Any, name: str, said: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=said, description=call.__doc__)
        added.set_defaults(call=call)
        return added

    new = command(begin, "new", "print a configuration to begin with")
    new.add_argument("model", metavar="MODEL", help="a folder, a hub id, demo, demo-experts or demo-mamba")
    new.add_argument("--sparsity", action="append", metavar="S", help="0.5, 2:4, …; may be repeated (2:4)")
    new.add_argument("--text", metavar="FILE", help="calibrate on this file instead of C4's first part from the hub")
    new.add_argument(
        "--evaluation", metavar="FILE", help="measure perplexity on this file instead of WikiText-2's test"
    )
    which = new.add_mutually_exclusive_group()
    for recipe, said in (("fast", "only the recipe `fast`"), ("best", "only the recipe `best`")):
        which.add_argument(f"--{recipe}", dest="recipe", action="store_const", const=recipe, help=said)
    go = command(execute, "run", "prune: what is behind the configuration goes to snakemake")
    go.add_argument("config", nargs="?", default="config.yaml", help="its file (config.yaml)")
    go.add_argument("snakemake", nargs="*", metavar="...", help="snakemake's: -n, --cores 8; --profile slurm (local)")
    for call, name, said in (
        (check, "check", "say all that is wrong with a configuration, or print its runs"),
        (plan, "plan", "say what it takes: jobs, memory, disk, time"),
        (status, "status", "say how far it is"),
        (tidy, "tidy", "remove what finished runs no longer need"),
    ):
        added = command(call, name, said)
        added.add_argument("config", nargs="?", default="config.yaml", type=Path, help="its file (config.yaml)")
    summary = command(show_summary, "summary", "print the table of runs, and where everything is")
    summary.add_argument("results", nargs="?", default="results", type=Path, help="folder of results (results)")
    report = command(show_report, "report", "one report of one or several folders of results")
    report.add_argument("results", nargs="+", type=Path, help="folders of results, of other experiments or machines")
    report.add_argument("-o", "--output", default="report.html", type=Path, help="the page (report.html)")
    report.add_argument("--pictures", type=Path, help="folder for the pictures as SVG (beside the page)")
    return whole


def begin(model: str, sparsity: list[str] | None, text: str | None, evaluation: str | None, recipe: str | None) -> None:
    """Print a configuration that fits the model and this machine, each choice with its reason."""
    from gramprune.experiment.starter import configuration

    recipes = (recipe,) if recipe else ("wanda", "fast", "best")
    print(configuration(model, sparsity or ["2:4"], text, evaluation, recipes), end="")


def execute(typed: list[str]) -> None:
    """Prune as a configuration says: a call of Snakemake with the workflow that belongs to this library."""
    config, options = (typed[0], typed[1:]) if typed and not typed[0].startswith("-") else ("config.yaml", typed)
    asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    asked.add_argument("--profile", default="local")
    chosen, options = asked.parse_known_args(options)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(home.snakefile()), "--configfile", config]
    command += ["--profile", str(home.profile(chosen.profile) or chosen.profile)]
    os.execv(sys.executable, [*command, "--workflow-profile", str(home.profile("default")), *options])


def check(config: Path) -> None:
    """Say all that is wrong with a configuration, its models and its texts, or print the runs that it makes."""
    from gramprune.experiment import checks, configfile
    from gramprune.experiment.starter import counted

    found, chosen = checks.mistakes(configfile.read(config), [config])
    if found or chosen is None:
        raise GrampruneError("\n".join(found))
    for run in chosen.runs:
        print(run.name)
    print(f"{config} is right: {counted(len(chosen.runs))} of {', '.join(model.name for model in chosen.model)}")


def plan(config: Path) -> None:
    """Say what an experiment takes, before anything is downloaded: jobs, memory, disk and time."""
    from gramprune.experiment.plan import plan

    print(plan(*_looked_at(config)))


def status(config: Path) -> None:
    """Say how far an experiment is, and how long the rest will take."""
    from gramprune.experiment.status import status

    print(status(*_looked_at(config)))


def tidy(config: Path) -> None:
    """Remove hidden states, Gram matrices, masks and weights that finished runs no longer need."""
    from gramprune.stages.tidy import tidy
    from gramprune.storage import lock

    chosen, _ = _looked_at(config)
    lock.take(Path(chosen.results))
    tidy(Path(chosen.results), chosen.tidy_settings, code="")


def _looked_at(config: Path) -> Any:
    """Settings and layouts of a configuration."""
    from gramprune.experiment import checks, configfile

    return checks.check(configfile.read(config), planning=True, written_in=[config])


def show_report(results: list[Path], output: Path, pictures: Path | None) -> None:
    """Write one page of several folders of results, and its pictures beside it."""
    if not output.name:
        raise GrampruneError(f"{output} is no file; name one for the page.")
    from gramprune.report import write_report

    pictures = pictures or output.with_name(f"{output.stem}_pictures")
    write_report(results, output, pictures)
    print(f"{output}, {pictures}/")


def show_summary(results: Path) -> None:
    """Print the table of runs with the dense row on top, which of them to take, and the paths of what was made."""
    from gramprune.report.answer import plain, takes
    from gramprune.report.read import read
    from gramprune.report.results import as_text, read_summary

    print(as_text(read_summary(results / "summary.parquet")))
    print()
    try:
        said = [plain(sentence) for sentence in takes([read(results)])]
    except GrampruneError as error:  # the table may be all that is left
        said = [f"Which run to take cannot be said: {error}"]
    print(*said, sep="\n", end="\n\n" if said else "")
    made = {
        "report": "report.html",
        "pictures": "pictures/",
        "tables": "summary.csv, summary.parquet, summary.md, summary.tex, layers.parquet",
        "checkpoints": "<model>/<run>/checkpoint",
    }
    for what, names in made.items():
        paths = [f"{results}/{name}" for name in names.split(", ") if "<" in name or (results / name).exists()]
        if paths:
            print(f"{what + ':':<13}{', '.join(paths)}")


if __name__ == "__main__":
    main()
