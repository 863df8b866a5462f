"""Where texts and models come from: local files, the hub's own libraries, and what is said when there is nothing."""

import json
import os
import shutil
import subprocess
import sys

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from conftest import changed

from gramprune.errors import GrampruneError
from gramprune.experiment import settings
from gramprune.text import sources

TEXTS = ["First document.", "", "Third: é and €."]


def read(**dataset):
    described = settings.Dataset(**dataset).source_settings
    return list(sources.documents(described, "test"))


def test_jsonl_and_parquet_give_their_field_in_order(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    parquet.write_table(arrow.table({"body": TEXTS, "id": [1, 2, 3]}), tmp_path / "a.parquet")
    assert read(path=str(tmp_path / "a.jsonl"), field="body") == TEXTS
    assert read(path=str(tmp_path / "a.parquet"), field="body") == TEXTS
    assert read(path=str(tmp_path / "a.parquet"), field="body", documents=2) == TEXTS[:2]


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    assert read(path=str(tmp_path / "a.txt")) == ["\n\n".join(TEXTS)]


def test_the_hubs_loading_code_reads_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    assert read(hub="json", files=str(tmp_path / "a.jsonl"), documents=2) == TEXTS[:2]


def test_documents_survive_their_parquet_file(tmp_path):
    about = sources.write_documents(tmp_path / "a.parquet", iter(TEXTS * 500), {"dataset": "test"})
    assert about["documents"] == 1500
    assert sources.about_documents(tmp_path / "a.parquet") == about
    other = sources.write_documents(tmp_path / "b.parquet", iter(TEXTS * 499), {"dataset": "test"})
    assert other["sha256"] != about["sha256"]
    assert sources.read_documents(tmp_path / "a.parquet") == TEXTS * 500


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"body": "x"}\n', "line 1, has no field 'text' but body; set the dataset's `field`"),
        ("a.jsonl", "not json\n", "a.jsonl cannot be read"),
        ("a.parquet", "not parquet", "a.parquet cannot be read"),
        ("a.csv", "text\n", "a.csv is not a .txt, .jsonl or .parquet file"),
        ("a.jsonl", '{"text": 3}\n', "document 0 has int in the field 'text', expected text"),
    ],
)
def test_a_text_that_cannot_be_read_is_said_with_file_and_field(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(GrampruneError) as caught:
        read(path=str(tmp_path / name))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


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


def test_the_summary_command_prints_the_table_and_says_when_there_is_none(clone, tmp_path):
    command = [sys.executable, "-m", "gramprune", "summary"]
    done = subprocess.run([*command, "results"], cwd=clone.folder, capture_output=True, text=True, env=os.environ)
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["model", "run", "mask"]
    assert [line.split()[1] for line in lines[2:7]] == ["dense", "chain", "joint", "plain", "apart"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("gramprune: ")
