"""The settings are the single source: what is generated from them has not drifted, what we ship is valid."""

import json
import re
import tomllib

import pytest
import yaml
from conftest import ROOT
from jsonschema import Draft202012Validator

from gramprune import reference, settings

CONFIGS = [ROOT / "config.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]


@pytest.mark.parametrize("place", reference.GENERATED)
def test_generated_files_have_not_drifted(place):
    assert (ROOT / place).read_text() == reference.GENERATED[place](), "run: python -m gramprune.reference"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_are_valid_for_us_and_for_editors(path):
    content = yaml.safe_load(path.read_text())
    settings.load(content)
    schema = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    assert [error.message for error in Draft202012Validator(schema).iter_errors(content)] == []


def test_the_conda_environment_has_the_versions_of_the_constraints():
    pins = dict(line.lower().replace("_", "-").split("==") for line in (ROOT / "constraints.txt").read_text().split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]]
    conda = yaml.safe_load((ROOT / "workflow/envs/gramprune.yaml").read_text())["dependencies"]
    assert conda[-1]["pip"] == [f"{name}=={pins[name]}" for name in direct]


def test_no_registry_is_named_in_what_installs():
    for name in ("constraints.txt", "pyproject.toml", "Makefile", "workflow/envs/gramprune.yaml"):
        assert "://" not in (ROOT / name).read_text()


def test_runs_with_the_same_mask_settings_share_its_file():
    first = settings.Run(sparsity=0.5, mask="wanda", update="admm")
    second = settings.Run(sparsity=0.5, mask={"method": "wanda"}, propagation="dense")
    other = settings.Run(sparsity=0.5, mask={"method": "admm", "iterations": 30}, update="joint")
    assert first.mask_slug == second.mask_slug == "wanda_0.5_row"
    assert re.fullmatch(r"admm_0\.5_row_[0-9a-f]{8}", other.mask_slug)
    assert first.name == "wanda-admm-0.5"


def test_a_models_name_is_the_last_part_of_its_source():
    names = [
        settings.Model.model_validate(source).name for source in ("demo", "org/Llama-3.2-1B", "./models/my model/")
    ]
    assert names == ["demo", "Llama-3.2-1B", "my-model"]
