"""Where models come from: local folders, the hub's cache, and what is said when there is nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import changed


@pytest.mark.slow
def test_a_hub_model_is_used_from_the_hubs_cache_with_its_commit(clone, config, tiny_model, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub/models--org--tiny-hub"
    shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    new = changed(config, lambda c: c.update(model="org/tiny-hub", results="hub"))
    clone.run("hub/tiny-hub/calibration.safetensors", config=new)
    manifest = json.loads((clone.folder / "hub/tiny-hub/model.json").read_text())
    assert manifest["revision"] == commit
    assert manifest["folder"] == str(repository / "snapshots" / commit)
    shutil.move(tmp_path / "hub", tmp_path / "gone")  # planning asks the hub only once
    assert clone.planned(new)[("capture", "dense")] == 3


def test_a_hub_that_is_out_of_reach_is_said_in_one_sentence(clone, config, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    done = clone.snakemake("--dry-run", config=changed(config, lambda c: c.update(model="org/nowhere")))
    assert done.returncode != 0
    assert "gramprune: model: config.json of org/nowhere (revision main) could not be fetched" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_said_in_one_sentence_when_text_is_fetched(clone, config, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    there = {"hub": "org/nowhere", "documents": 10}
    new = changed(config, lambda c: c.update(datasets={name: there for name in c["datasets"]}, results="unheard"))
    name = next(iter(config["datasets"]))
    done = clone.snakemake(f"unheard/data/{name}.parquet", config=new)
    assert done.returncode != 0
    assert "org/nowhere could not be found on the hub" in done.stderr and "Check its name" in done.stderr
    assert "Traceback" not in done.stderr and "not foreseen" not in done.stderr


def test_the_summary_command_prints_the_table_and_says_when_there_is_none(clone, tmp_path):
    command = [sys.executable, "-m", "gramprune", "summary"]
    done = subprocess.run([*command, "results"], cwd=clone.folder, capture_output=True, text=True, env=os.environ)
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["model", "run", "mask"]
    assert [line.split()[1] for line in lines[2:7]] == ["dense", "chain", "joint", "plain", "apart"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("gramprune: ")
