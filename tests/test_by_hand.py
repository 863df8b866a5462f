"""One job by hand: `python -m gramprune.stages` does what the job has done, to the byte, in one process."""

import json
import os
import re
import subprocess
import sys
from functools import partial

import pytest

from gramprune.errors import GrampruneError
from gramprune.experiment import checks, choice, pipeline

STAGES = {  # what is typed, and the files that it makes
    "mask --run plain --block 1": "dense/block_001/masks/wanda_0.5_row.safetensors",
    "results/logs/tiny/chain/block_002/update.log": "chain/block_002/weights.safetensors",
}


def by_hand(clone, *words):
    command = [sys.executable, "-m", "gramprune.stages", *words]
    environment = {**os.environ, "PYTHONPATH": str(clone.folder / "src")}
    return subprocess.run(command, cwd=clone.folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("words", STAGES)
def test_a_stage_by_hand_makes_the_bytes_that_its_job_has_made(clone, words):
    made = clone.folder / "results/tiny" / STAGES[words]
    before = made.read_bytes()
    made.unlink()
    done = by_hand(clone, *words.split())
    assert done.returncode == 0, done.stderr
    assert made.read_bytes() == before


def test_an_evaluation_by_hand_has_the_figures_of_its_job(clone):
    made = clone.folder / "results/tiny/joint/evaluation/perplexity_evaluation.json"
    before = json.loads(made.read_text())
    assert by_hand(clone, "perplexity", "--run", "joint").returncode == 0
    after = json.loads(made.read_text())
    assert {key for key in before if before[key] != after[key]} <= {"seconds", "peak_host_mb"}


def test_a_job_is_found_by_what_a_person_says_of_it(clone, config, monkeypatch):
    monkeypatch.chdir(clone.folder)
    work = pipeline.jobs(*checks.check(config))
    found = partial(choice.one_job, work)
    assert found("capture", run="dense", block=2) == ("capture", "tiny", "dense", 2)
    assert found("capture", run="aimed", block=2) == ("capture", "tiny", "aimed", 2)
    assert found("refine", run="refined", block=0)[2:] == ("dense", 0, "wanda_0.5_row+sparseswaps")
    assert found("elsewhere/logs/summary.log") == ("summary",)
    for words, said in (
        (("updat",), "this experiment has no stage 'updat'; did you mean 'update'?"),
        (
            ("update", None, "chain", 9),
            "no job of this experiment is update of run chain, block 9; there are tiny/chain/b",
        ),
        (("update", None, "chain"), "3 jobs are update of run chain: tiny/chain/block_000/update"),
        (("logs/nothing.log",), "no job of this experiment has the log logs/nothing.log"),
    ):
        with pytest.raises(GrampruneError, match=f"^{re.escape(said)}"):
            found(*words)


def test_a_file_that_a_job_reads_and_that_is_not_there_is_named(clone):
    read = clone.folder / "results/tiny/chain/block_001/gram.safetensors"
    read.rename(read.with_suffix(".kept"))
    done = by_hand(clone, "update", "--run", "chain", "--block", "1")
    read.with_suffix(".kept").rename(read)
    assert done.returncode == 1
    assert "reads results/tiny/chain/block_001/gram.safetensors, which is not there; have it made with:" in done.stderr
