"""benchmarks/gpu.py in small, so that it works on the day when there is a GPU."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


def run(*arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)


@pytest.mark.slow
def test_every_part_of_the_benchmark_works_on_a_cpu(tmp_path):
    made = run("--device", "cpu", "--small", "--output", tmp_path / "gpu.json")
    assert made.returncode == 0, made.stdout + made.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["device"] == "cpu" and found["torch"] and found["date"] and found["left_out"] == []
    whole = {row["what"].split()[0] for row in found["rows"]}
    assert whole == {"floor", "same", "stages", "times", "block"}


@pytest.mark.slow
def test_without_time_nothing_is_begun_and_without_a_gpu_it_is_one_sentence(tmp_path):
    made = run("--device", "cpu", "--small", "--minutes", "0", "--output", tmp_path / "gpu.json")
    assert "Left out, as the time was spent: floor, same" in made.stdout
    refused = run(CUDA_VISIBLE_DEVICES="")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "sees no GPU" in refused.stderr
