"""The workflow where no clone is: installed from a wheel, and as a part of another workflow."""

import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(config) -> dict:
    """A run on the tiny model whose results lie in `pruned`."""
    return {**config, "runs": [{"recipe": "wanda", "sparsity": 0.5}], "results": "pruned"}


def called(command, folder, **variables) -> str:
    """What a command says that ends well."""
    done = subprocess.run(command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def test_a_wheel_holds_the_workflow_and_prunes_in_an_empty_folder(small, tmp_path):
    site, folder = tmp_path / "site", tmp_path / "empty"
    folder.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet"]
    clone = tmp_path / "clone"
    called(["git", "clone", "--quiet", str(ROOT), str(clone)], tmp_path)  # without what lies about in the folder
    called([*pip, "wheel", str(clone), "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)], tmp_path)
    wheel = next(tmp_path.glob("gramprune-*.whl"))
    called([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], tmp_path)
    gramprune, found = [sys.executable, "-m", "gramprune"], {"PYTHONPATH": str(site)}
    assert "evaluation:" in called([*gramprune, "new", "demo"], folder, **found)
    (folder / "config.yaml").write_text(yaml.safe_dump(small))
    assert "assemble" in called([*gramprune, "run", "-n", "--cores", "2"], folder, **found)
    called([*gramprune, "run", "config.yaml", "--cores", "2"], folder, **found)
    assert "wanda-0.5" in called([*gramprune, "summary", "pruned"], folder, **found)
    assert (folder / "pruned/tiny/wanda-0.5/checkpoint/gramprune.json").exists()


IMPORTING = """
configfile: "mine.yaml"

module gramprune:
    snakefile: {snakefile}
    config: config["pruning"]

use rule * from gramprune as gramprune_*

rule all:
    default_target: True
    input: rules.gramprune_all.input, "zeros.txt"

rule zeros:
    input: "pruned/summary.csv"
    output: "zeros.txt"
    shell: "cut -d, -f1-2 {{input}} > {{output}}"
"""


@pytest.fixture
def importing(small, tmp_path):
    """Command of a workflow that imports ours from a place, with our configuration under a key of its own."""

    def written(snakefile: str, **changed) -> list[str]:
        (tmp_path / "Snakefile").write_text(IMPORTING.format(snakefile=snakefile))
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"of the other": 1, "pruning": {**small, **changed}}))
        return [sys.executable, "-m", "snakemake", "--cores", "2"]

    return written


LOCAL = repr(str(ROOT / "workflow/Snakefile"))


def test_another_workflow_has_it_as_a_module_with_its_own_configuration(importing, tmp_path):
    assert "gramprune_assemble" in called([*importing(LOCAL), "-n"], tmp_path)
    snakemake = importing(LOCAL, runs=[{"recipe": "wonder", "sparsity": 0.5}])
    done = subprocess.run(snakemake, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "did you mean" in done.stderr and "Traceback" not in done.stderr


def test_another_workflow_has_it_as_a_module_from_a_repository(importing, tmp_path):
    """Which Snakemake reads file by file, from git: here the host's name stands for a folder."""
    called(["git", "clone", "--quiet", "--bare", str(ROOT), "host/someone/gramprune"], tmp_path)
    commit = called(["git", "-C", "host/someone/gramprune", "rev-parse", "HEAD"], tmp_path).strip()
    snakemake = importing(f'github("someone/gramprune", path="workflow/Snakefile", commit="{commit}")')
    elsewhere = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{tmp_path}/host/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT / "src"),
    }
    called(snakemake, tmp_path, **elsewhere)
    assert "wanda-0.5" in (tmp_path / "zeros.txt").read_text()
    assert (tmp_path / "pruned/report.html").exists()
    assert "Nothing to be done" in called(snakemake, tmp_path, **elsewhere)
