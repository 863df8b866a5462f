"""Where the workflow and its profiles are: beside the library in a clone, inside it where the package is installed."""

from pathlib import Path

HERE = Path(__file__).parent
CLONE = HERE.parents[1]


def snakefile() -> Path:
    """The workflow's."""
    return (HERE if (HERE / "workflow").is_dir() else CLONE) / "workflow/Snakefile"


def profile(name: str) -> Path | None:
    """The folder of one of our profiles for Snakemake; None for another name."""
    for folder in (HERE / "profiles" / name, CLONE / name, CLONE / "profiles" / name):
        if (folder / "profile.yaml").exists():
            return folder
    return None
