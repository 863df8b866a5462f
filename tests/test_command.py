"""The command `gramprune`: a configuration to begin with, all that is wrong with one, and answers without Snakemake."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import yaml
from conftest import ROOT, Clone, changed, copied
from families import CONFIGS

from gramprune import __version__
from gramprune.__main__ import run
from gramprune.experiment import settings


def gramprune(*arguments, folder=None, status=0):
    command = [sys.executable, "-m", "gramprune", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if not status else done.stderr


@pytest.fixture
def own(tiny_model, texts, tmp_path):
    """A user's folder with a model and two texts."""
    shutil.copytree(tiny_model, tmp_path / "my-model")
    for name, path in texts.items():
        shutil.copy(path, tmp_path / f"{name}{path.suffix}")
    return tmp_path


@pytest.fixture
def copy(clone, tmp_path):
    """A finished clone that may be changed."""
    return copied(clone.folder, tmp_path)


@pytest.mark.slow
def test_a_configuration_to_begin_with_is_right_and_says_why(own):
    given = ("--text", "calibration.jsonl", "--evaluation", "evaluation.txt", "--sparsity", "2:4", "--sparsity", "0.5")
    written = gramprune("new", "./my-model", *given, folder=own)
    (own / "my.yaml").write_text(written.replace("samples: 128 ", "samples: 12 ").replace("length: 128", "length: 64"))
    chosen = settings.load(yaml.safe_load(written))
    assert [run.name for run in chosen.runs] == [f"{r}-{s}" for r in ("wanda", "fast", "best") for s in ("2of4", "0.5")]
    assert (chosen.calibration.length, chosen.keep, chosen.results) == (128, "all", "results/my-model")
    for reason in ("all of the model's context of 128", "are free", "3 blocks, 21 linears"):
        assert reason in written
    said = gramprune("check", "my.yaml", folder=own)
    assert said.splitlines()[-1] == "my.yaml is right: 6 runs of my-model" and "best-2of4" in said
    assert not (own / "results").exists()


@pytest.mark.slow
def test_new_takes_so_many_samples_that_experts_see_enough_tokens(own):
    config = {**CONFIGS["mixtral"], "num_local_experts": 128, "max_position_embeddings": 16}
    (own / "my-model/config.json").write_text(json.dumps(config))
    written = gramprune("new", "./my-model", "--text", "calibration.jsonl", folder=own)
    samples = settings.load(yaml.safe_load(written)).calibration.samples
    (tokens,) = re.findall(r"an expert of 48 inputs sees (\d+) tokens", written)
    assert samples == 192 and int(tokens) == samples * 16 * 2 / 128 == 48


@pytest.mark.slow
def test_new_takes_the_recipe_and_the_hubs_texts_that_it_is_told(own):
    (run,) = settings.load(yaml.safe_load(gramprune("new", "./my-model", "--best", folder=own))).runs
    assert run.name == "best-2of4"
    chosen = settings.load(yaml.safe_load(gramprune("new", "demo", "--fast", folder=own)))
    assert chosen.calibration.dataset == "demo" and not chosen.datasets


def test_check_says_all_that_is_wrong_at_once(own, config):
    wrong = changed(config, lambda c: (c.update(model="./nowhere", batch_sise=2), c["calibration"].update(samples=0)))
    (own / "my.yaml").write_text(json.dumps(wrong))
    said = gramprune("check", "my.yaml", folder=own, status=1).splitlines()
    assert len(said) == 2 and "batch_sise" in said[0] + said[1] and "calibration.samples" in said[0] + said[1]
    right = changed(wrong, lambda c: (c.pop("batch_sise"), c["calibration"].update(samples=4)))
    (own / "my.yaml").write_text(
        json.dumps(changed(right, lambda c: c["datasets"]["evaluation"].update(path="no.txt")))
    )
    said = gramprune("check", "my.yaml", folder=own, status=1).splitlines()
    assert ["./nowhere" in said[0], "no.txt" in said[1], len(said)] == [True, True, 2]


def test_plan_and_status_answer_as_their_targets_do_and_print_nothing_else(copy):
    for name in ("plan", "status"):
        answer = gramprune(name, "config.yaml", folder=copy.folder)
        assert answer in copy.snakemake(name).stdout
    assert "Everything is done" in answer


def test_the_summary_says_which_run_to_take_in_the_words_of_the_page(clone):
    said = gramprune("summary", folder=clone.folder).splitlines()
    takes = re.findall("<ul class=take>(.*?)</ul>", (clone.folder / "results/report.html").read_text())[0]
    sentences = [html.unescape(re.sub("<[^>]*>", "", item)) for item in takes.split("</li>")[:-1]]
    assert [sentence.split(": ")[0] for sentence in sentences] == ["0.5", "2:4"]
    assert [line for line in said if line in sentences] == sentences


def test_tidy_removes_what_finished_runs_no_longer_need(copy):
    assert gramprune("tidy", folder=copy.folder).endswith("GiB\n")
    assert list((copy.folder / "results/tiny/chain").rglob("*.json"))
    assert not list((copy.folder / "results/tiny/chain").rglob("gram.safetensors"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("new", "./nowhere"), "./nowhere does not exist"),
        (("new", "demo", "--sparsity", "half"), "'half' is not a fraction"),
        (("new", "demo", "--text", "no.txt"), "no.txt does not exist"),
        (("new", ""), "model: '' is no path"),
        (("new", "demo", "--text", "my-model/config.json"), "config.json"),
        (("new", "demo", "--text", "my-model/model.safetensors.index.json"), "index.json"),
        (("check", "no.yaml"), "no.yaml cannot be read"),
        (("plan", "no.yaml"), "no.yaml cannot be read"),
    ],
)
def test_what_the_command_cannot_do_is_said_in_a_sentence(own, monkeypatch, arguments, words):
    monkeypatch.chdir(own)
    with pytest.raises(SystemExit) as end:
        run([*arguments])
    assert end.value.code.startswith("gramprune: ") and words in end.value.code and "\n" not in end.value.code


@pytest.mark.parametrize("where", ["gramprune check", "snakemake --configfile", "snakemake"])
def test_ctrl_c_before_any_job_is_a_word_and_a_shells_status(tmp_path, where):
    """While a file of settings is read, a pipe from which nothing comes; and later, with Snakemake's locks to undo."""
    clone, pipe = Clone(tmp_path), tmp_path / "config.yaml"
    os.mkfifo(pipe)
    module, *arguments = where.split()
    if not arguments:
        snakefile = clone.folder / "Snakefile"
        snakefile.write_text(snakefile.read_text() + f"\n\nopen('{pipe}')\n")
        (tmp_path / "demo.yaml").write_text((ROOT / "config.yaml").read_text())
        arguments = ["--configfile", "demo.yaml"]
    else:
        arguments.append(pipe)
    started = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while started.poll() is None:
        with suppress(OSError):  # nobody reads yet
            os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            started.send_signal(signal.SIGINT)
            break
        time.sleep(0.01)
    said = started.communicate(timeout=60)[1]
    assert started.returncode == 130, said
    assert said.endswith("interrupted\n") and "Traceback" not in said


def test_the_command_knows_its_version_and_its_examples():
    assert gramprune("--version").strip() == f"gramprune {__version__}"
    assert "gramprune new ./my-model > my.yaml" in gramprune("--help")
