"""What is known before an experiment (plan, resources), during it (status), and what is left after it (keep, tidy)."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import Clone, changed, copied

from gramprune import machine
from gramprune.experiment import checks, measured, outputs, pipeline, resources
from gramprune.experiment.measured import Measured
from gramprune.experiment.needs import MIB, Need
from gramprune.experiment.pipeline import Job
from gramprune.model.demo import DEMOS

UNSHARE = ["unshare", "--user", "--map-root-user", "--net"]
BLOCK_TENSORS = "results/tiny/*/block_*/**/*.safetensors"


def reduced(config, **changes):
    return changed(config, lambda c: c.update(runs=[c["runs"][0], c["runs"][3]], **changes))  # chain and apart


def test_the_plan_has_the_jobs_of_the_workflow(clone, config, monkeypatch):
    elsewhere = changed(config, lambda c: c.update(results="elsewhere"))
    planned = clone.planned(elsewhere)
    monkeypatch.chdir(clone.folder)
    found = pipeline.jobs(*checks.check(elsewhere))
    expected = Counter()
    for (rule, _), count in planned.items():
        expected[rule] += count
    assert Counter(key[0] for key in found) == expected


def test_jobs_come_after_those_that_they_wait_for(clone, config, monkeypatch):
    monkeypatch.chdir(clone.folder)
    work = pipeline.jobs(*checks.check(config))
    done = set()
    for key, job in work.items():
        assert set(job.after) <= done, key
        done.add(key)


@pytest.mark.slow
def test_a_plan_needs_no_more_than_the_config_of_a_model(tiny_model, config, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((tiny_model / "config.json").read_text())
    (tmp_path / "clone").mkdir()
    clone = Clone(tmp_path / "clone")
    only = changed(config, lambda c: c.update(model=str(tmp_path / "model"), datasets=missing(c["datasets"])))
    done = clone.snakemake("plan", config=only)
    assert done.returncode == 0, done.stderr
    for word in ("jobs for 6 runs of model", "capture", "h200", "all dense", "longest chain", "keep: results"):
        assert word in done.stdout
    refused = clone.snakemake("--dry-run", config=only)
    assert refused.returncode and "holds no model.safetensors" in refused.stderr


def missing(datasets):
    return {name: {"path": f"not-there-yet/{name}.txt"} for name in datasets}


def chain(length: int, seconds: float) -> dict:
    need = Need(0, accelerated=True, start=seconds)
    return {("capture", place): Job(need, (("capture", place - 1),) if place else ()) for place in range(length)}


def test_wall_time_is_bounded_by_the_devices_and_by_the_longest_chain():
    apart = {("mask", place): Job(Need(0, accelerated=True, start=2.0)) for place in range(6)}
    work = {**chain(3, 5.0), **apart, ("summary",): Job(Need(0, start=1.0), (("capture", 2),))}

    def seconds(need):
        return need.seconds("h100")

    assert pipeline.makespan(work, seconds, 1) == 15 + 12  # the summary runs beside the last mask
    assert pipeline.makespan(work, seconds, 2) == pipeline.longest_chain(work, seconds)[0] == 16
    assert [key[0] for key in pipeline.longest_chain(work, seconds)[1]] == ["capture"] * 3 + ["summary"]


def test_every_method_that_can_be_chosen_has_a_cost():
    from gramprune.pruning import allocation, joint, masks, methods, refine, updates

    packages = {"allocation": allocation, "masks": masks, "joint": joint, "refine": refine, "updates": updates}
    known = {f"{name}.{method}" for name, package in packages.items() for method in methods.names(package)}
    assert known - {"refine.none", "updates.none"} == resources.COSTS.keys()


@pytest.mark.parametrize("device, gpu", [("cpu", 0), ("auto", 1), ("cuda", 1)])
def test_rules_ask_for_twice_as_much_with_every_attempt_and_for_a_gpu_where_one_is_used(config, device, gpu):
    settings, _ = checks.check(changed(config, lambda c: c.update(device=device)), planning=True)
    need = Need(base=100 * MIB, tensors=1000 * MIB, staging=200 * MIB, disk=5 * MIB, accelerated=True)
    asked = resources.requested(lambda w: need, settings)
    assert [asked["mem_mb"](None, attempt) for attempt in (1, 2, 3)] == [
        asked["mem_mb"](None, 1) * n for n in (1, 2, 4)
    ]
    assert asked["mem_mb"](None, 1) >= (1100 if device != "cuda" else 300)
    assert asked["runtime"](None, 2) == 2 * asked["runtime"](None, 1) >= 20
    assert asked["gpu"](None) == gpu
    assert resources.requested(lambda w: Need(base=1), settings)["gpu"](None) == 0


def test_jobs_beside_each_other_get_gpus_of_their_own():
    code = "import os, sys; sys.path.insert(0, sys.argv[1]); from gramprune import machine; machine.claim_gpu(); "
    code += "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
    names = [f"test-{os.getpid()}-{place}" for place in range(2)]  # of GPUs that no other process claims
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(names)}

    def job():
        command = [sys.executable, "-c", code, str(Path(machine.__file__).parents[1])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, text=True, **pipes)

    jobs = [job(), job()]
    claimed = [each.stdout.readline().strip() for each in jobs]
    assert sorted(claimed) == names
    third = job()
    time.sleep(1.5)
    jobs[1].kill()  # its GPU is free again, however it ended
    assert third.stdout.readline().strip() == claimed[1]
    for each in (*jobs, third):
        each.kill()
        each.communicate()


CLAIM = """
import sys; sys.path.insert(0, sys.argv[1])
from gramprune import machine
from gramprune.errors import GrampruneError
try: machine.claim_gpu(); import os; print(os.environ["CUDA_VISIBLE_DEVICES"])
except GrampruneError as error: print(error)
"""


def test_a_lock_of_a_gpu_follows_no_link_and_uses_no_folder_of_others(tmp_path):
    session, temporary, mine = (tmp_path / name for name in ("session", "temporary", "mine"))
    for folder in (session, temporary, mine):
        folder.mkdir(mode=0o700)
    (mine / "notes").write_text("mine")
    environment = {
        **os.environ,
        "XDG_RUNTIME_DIR": str(session),
        "TMPDIR": str(temporary),
        "CUDA_VISIBLE_DEVICES": "A,B",
    }

    def claimed() -> str:
        command = [sys.executable, "-c", CLAIM, str(Path(machine.__file__).parents[1])]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout.strip()

    assert claimed() == "A" and [path.name for path in session.iterdir()] == ["gpu-A.lock"]
    (session / "gpu-A.lock").unlink()
    (session / "gpu-A.lock").symlink_to(mine / "notes")
    assert claimed() == "B"  # the next one
    (session / "gpu-B.lock").unlink()
    (session / "gpu-B.lock").mkdir()
    assert "no GPU can be claimed" in claimed() and "gpu-A.lock" in claimed()
    session.chmod(0o777)  # others may write there
    assert claimed() == "A" and [path.name for path in temporary.iterdir()] == [f"gramprune-{os.geteuid()}"]
    shutil.rmtree(temporary / f"gramprune-{os.geteuid()}")
    (temporary / f"gramprune-{os.geteuid()}").symlink_to(mine)
    assert claimed() in ("A", "B") and [path.name for path in mine.iterdir()] == ["notes"]
    assert (mine / "notes").read_text() == "mine"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


@pytest.fixture(scope="module")
def kept(clone, config, tmp_path_factory) -> Clone:
    """The same experiment with `keep: results`; everything after fetching without a network, where we may forbid it."""
    made = Clone(tmp_path_factory.mktemp("kept"))
    made.write(reduced(config, keep="results"))
    made.run("results/tiny/model.json", "results/data/calibration.parquet", "results/data/evaluation.parquet")
    refused = subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    done = made.snakemake(prefix=UNSHARE if refused else [])
    assert done.returncode == 0, done.stderr[-4000:]
    made.without_network = refused
    return made


@pytest.mark.slow
def test_after_fetching_everything_works_without_a_network(kept):
    if not kept.without_network:
        pytest.skip("this machine does not let us forbid the network")
    probe = [*UNSHARE, sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 80), 5)"]
    assert b"unreachable" in subprocess.run(probe, capture_output=True).stderr
    assert (kept.folder / "results/summary.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("run", ["chain", "apart"])
def test_keeping_results_only_gives_the_same_checkpoints_and_nothing_to_do(kept, clone, run):
    folder = f"results/tiny/{run}/checkpoint"
    assert bytes_of(kept.folder / folder) == bytes_of(clone.folder / folder)
    assert list(kept.folder.glob(BLOCK_TENSORS)) == []
    assert kept.planned() == Counter()


@pytest.mark.slow
def test_status_says_which_runs_are_done_and_where_the_others_are(clone, config, tmp_path):
    copy = copied(clone.folder, tmp_path)
    done = copy.snakemake("status")
    assert done.returncode == 0 and "Everything is done." in done.stdout
    added = changed(config, lambda c: c["runs"].append({"name": "new", "sparsity": 0.5, "mask": "magnitude"}))
    copy.run("results/tiny/new/block_001/gram.json", config=added)
    lines = copy.snakemake("status", config=added).stdout.splitlines()
    cells = {line.split()[1]: line.split() for line in lines if line.startswith("tiny ")}
    assert cells["chain"][2:] == ["3", "of", "3", "-", "yes", "1", "of", "1", "-"]
    assert cells["new"][2:12] == ["1", "of", "3", "mask", "of", "block", "1", "no", "0", "of"]
    assert any(line.startswith("To do: ") and "by the times of what is done" in line for line in lines)


def test_the_time_that_is_left_is_that_of_measured_jobs_of_the_same_stage(config):
    from gramprune.experiment.settings import load
    from gramprune.experiment.status import expected, finished, remaining

    settings = load(config)
    work = {**chain(4, 5.0), ("mask", 0): Job(Need(0, start=2.0), (("capture", 3),))}
    taken = {("capture", 0): Measured(10.0, 1.0, 9.0, 300, 100.0), ("capture", 1): Measured(20.0, 1.0, 9.0, 300, 200.0)}
    assert finished(work, taken) == {("capture", 0), ("capture", 1)}
    anew = {**taken, ("capture", 0): Measured(10.0, 1.0, 9.0, 300, 300.0)}
    assert finished(work, anew) == {("capture", 0)}
    seconds = expected(work, taken, settings)
    assert seconds["capture", 2] == pytest.approx(15) and seconds["mask", 0] == pytest.approx(6)  # three times as long
    left = remaining(work, finished(work, taken), seconds)
    assert list(left) == [("capture", 2), ("capture", 3), ("mask", 0)]
    assert pipeline.longest_chain(left, lambda need: need.start)[0] == pytest.approx(36)


@pytest.mark.parametrize("device, likely", [("auto", "cpu"), ("cpu", "cpu"), ("cuda", "a100")])
def test_before_anything_is_done_times_are_those_of_the_device_that_jobs_will_have(config, device, likely, monkeypatch):
    from gramprune.experiment.settings import load
    from gramprune.experiment.status import expected

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = load(changed(config, lambda c: c.update(device=device)))
    work = {("update", 0): Job(Need(0, accelerated=True, full=1e15))}
    assert expected(work, {}, settings)["update", 0] == work["update", 0].need.seconds(likely, settings.threads)


def test_the_demos_training_counts(config):
    small = changed(config, lambda c: c.update(model=[*DEMOS, c["model"]]))
    work = pipeline.jobs(*checks.check(small, planning=True))
    *training, copying = (work["fetch_model", name].need.seconds("cpu") for name in (*DEMOS, "tiny"))
    assert min(training) > 30 > copying


def test_logs_and_what_jobs_took_are_where_the_library_looks_for_them(clone, config, monkeypatch):
    monkeypatch.chdir(clone.folder)
    jobs, logs = pipeline.jobs(*checks.check(config)), clone.folder / "results/logs"
    for ending in (".log", ".json"):
        found = {str(path.relative_to(logs)).removesuffix(ending) for path in logs.rglob(f"*{ending}")}
        assert found == {outputs.stem(key) for key in jobs}
    for taken in measured.times(clone.folder / "results", jobs).values():
        assert 0 < taken.start_seconds < taken.seconds and taken.cpu_seconds > 0 and 50 < taken.host_mb < 2000


@pytest.mark.slow
def test_tidy_removes_what_finished_runs_no_longer_need_and_causes_no_rerun(clone, config, tmp_path):
    copy = copied(clone.folder, tmp_path)
    evaluation = "results/tiny/plain/evaluation/perplexity_evaluation.json"
    (copy.folder / evaluation).unlink()
    tensors = {path.relative_to(copy.folder): path.stat().st_size for path in copy.folder.glob(BLOCK_TENSORS)}
    done = copy.snakemake("tidy")
    assert done.returncode == 0, done.stderr
    left = {path.relative_to(copy.folder) for path in copy.folder.glob(BLOCK_TENSORS)}
    assert left == {path for path in tensors if "dense" in path.parts}  # runs share them
    freed = sum(size for path, size in tensors.items() if path not in left)
    assert f"freed {freed / 2**30:.3f} GiB" in done.stdout and "tiny/plain: not finished" in done.stdout
    copy.run(evaluation)
    copy.run()
    copy.run("tidy")
    assert {path.relative_to(copy.folder) for path in copy.folder.glob(BLOCK_TENSORS)} == left
    assert copy.planned() == Counter()
    added = changed(config, lambda c: c["runs"].append({"name": "new", "sparsity": 0.5, "mask": "magnitude"}))
    assert {trail for _, trail in copy.planned(added)} <= {None, "dense", "new"}
    copy.run("tidy", "--config", "keep=results")
    assert list(copy.folder.glob(BLOCK_TENSORS)) == [] and copy.planned() == Counter()
