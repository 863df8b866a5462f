"""Which folders are which packages; all else stands in pyproject.toml, which cannot say that."""

from setuptools import find_packages, setup

PROFILES = {f"gramprune.profiles.{name}": name for name in ("local", "workstation", "slurm")}
BESIDE = {"gramprune.workflow": "workflow", **PROFILES, "gramprune.profiles.default": "profiles/default"}

setup(packages=[*find_packages("src"), *BESIDE], package_dir={"": "src", **BESIDE})
