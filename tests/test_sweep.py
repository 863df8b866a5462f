"""Sweeps and recipes: which runs a line stands for, what they are called, and what is said of what cannot be."""

import re

import pytest
import yaml
from conftest import ROOT
from problems import assert_sentence

from gramprune.errors import GrampruneError
from gramprune.experiment import settings
from gramprune.experiment.recipes import RECIPES

BASE = {key: value for key, value in yaml.safe_load((ROOT / "config.yaml").read_text()).items() if key != "runs"}


def runs(*entries, **more):
    return settings.load({**BASE, "runs": list(entries), **more}).runs


def names(*entries, **more):
    return [run.name for run in runs(*entries, **more)]


def test_lists_stand_for_all_combinations_with_readable_names():
    made = names({"recipe": ["wanda", "admm"], "sparsity": [0.5, "2:4"]}, {"sparsity": 0.6, "mask": "ria"})
    assert made == ["wanda-0.5", "wanda-2of4", "admm-0.5", "admm-2of4", "ria-0.6"]
    swept = {"mask": "wanda", "update": ["none", "admm"], "sparsity": 0.5, "propagation": ["dense", "pruned"]}
    assert names(swept)[:2] == ["wanda-0.5-on-dense", "wanda-0.5-on-pruned"] and len(names(swept)) == 4
    options = {"name": "mine", "mask": {"method": "admm", "iterations": [20, 100]}, "update": "joint", "sparsity": 0.7}
    assert [(run.name, run.mask.iterations) for run in runs(options)] == [
        ("mine-iterations20", 20),
        ("mine-iterations100", 100),
    ]


def test_combinations_that_cannot_be_are_left_out():
    """One method that makes no weights; N:M, which counts in groups."""
    swept = {"mask": ["wanda", "admm"], "update": ["none", "joint"], "sparsity": [0.5, "2:4"]}
    assert set(names(swept)) == {
        "wanda-0.5", "wanda-2of4", "admm-0.5", "admm-2of4", "admm-joint-0.5", "admm-joint-2of4"
    }  # fmt: skip
    assert names({"mask": "wanda", "sparsity": [0.5, "2:4"], "granularity": ["row", "matrix"]}) == [
        "wanda-0.5-row", "wanda-0.5-matrix", "wanda-2of4-row"
    ]  # fmt: skip


def test_runs_can_be_taken_out_by_name():
    swept = {"recipe": ["wanda", "best"], "sparsity": [0.5, 0.6]}
    assert names(swept, exclude_runs=["best-0.6", "wanda-*"]) == ["best-0.5"]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_a_recipe_says_what_the_run_does_not(recipe, sparsity):
    (run,) = runs({"recipe": recipe, "sparsity": sparsity})
    written = {"sparsity": sparsity, **RECIPES[recipe], "name": run.name}
    if sparsity == "2:4":
        written.pop("granularity", None)
    (expected,) = runs(written)
    assert run.model_copy(update={"recipe": None}) == expected
    (other,) = runs({"recipe": recipe, "sparsity": sparsity, "mask": "ria", "update": "exact", "refine": "none"})
    assert (other.mask.method, other.update.method, other.refined) == ("ria", "exact", False)


def test_settings_without_sweeps_are_taken_again_as_they_are():
    usual = {"refine": "none", "update": "none", "target": "own", "granularity": "row", "reconstruct": "none"}
    swept = [{"recipe": "best", "name": key, "sparsity": 0.5, key: value} for key, value in usual.items()]
    swept[1] = {"recipe": "admm", "name": "update", "sparsity": 0.5, "update": "none"}  # `best` needs one
    swept.append({"recipe": ["best", "fast"], "sparsity": [0.5, "2:4"]})
    chosen = settings.load({**BASE, "runs": swept})
    assert settings.load(chosen.model_dump()) == chosen
    for key, value in usual.items():  # a default that stands before the recipe's value
        (run,) = (run for run in chosen.runs if run.name == key)
        assert getattr(run, key) == value or getattr(run, key).method == value
    assert settings.load({**chosen.experiment, "results": chosen.results}).runs == chosen.runs


WRONG = {
    "an empty list": ([{"mask": [], "sparsity": 0.5}], {}, ("runs[0].mask", "empty")),
    "a misspelt method in a list": ([{"mask": ["wanda", "wnda"], "sparsity": 0.5}], {}, ("runs[0].mask", "'wanda'?")),
    "a misspelt recipe": ([{"recipe": "bst", "sparsity": 0.5}], {}, ("runs[0].recipe", "'best'?")),
    "a sparsity of nothing": ([{"mask": "wanda", "sparsity": [0.5, 0]}], {}, ("runs[0].sparsity", "0")),
    "the second entry": ([{"recipe": ["ria"], "sparsity": 0.5}, {"mask": "x", "sparsity": 0.5}], {}, ("runs[1]",)),
    "no combination": ([{"mask": "wanda", "update": ["joint"], "sparsity": 0.5}], {}, ("runs[0]", "no combination")),
    "too many": ([{"mask": "wanda", "sparsity": [0.5] * 50, "precision": ["float32"] * 50}], {}, ("2,000", "split")),
    "the same run twice": ([{"mask": "wanda", "sparsity": [0.5, 0.5]}], {}, ("two have the name", "wanda-0.5")),
    "a pattern of no run": ([{"mask": "wanda", "sparsity": 0.5}], {"exclude_runs": ["x*"]}, ("exclude_runs[0]", "x*")),
    "nothing left": ([{"mask": "wanda", "sparsity": 0.5}], {"exclude_runs": ["*"]}, ("exclude_runs", "no run")),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_sweep_is_said_at_the_place_where_it_is_written(what):
    entries, more, words = WRONG[what]
    with pytest.raises(GrampruneError) as error:
        runs(*entries, **more)
    assert_sentence(error, "config: ", *words)


def test_the_documented_recipes_are_those_that_there_are():
    text = (ROOT / "docs/how-to.md").read_text()
    rows = {name: cell for name, cell in re.findall(r"^\| `(\w+)` \| (`mask: .*?) \|", text, re.M)}
    assert {name: yaml.safe_load("\n".join(re.findall("`(.*?)`", cell))) for name, cell in rows.items()} == RECIPES
