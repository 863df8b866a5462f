"""The workflow on a real Slurm: what its jobs ask for and make, and that a fault costs no more than what it hits."""

import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from conftest import Clone, save_llama

import slurm

pytestmark = pytest.mark.slow

ON_SLURM = ("--cores", "8", "--profile", "slurm", "--latency-wait", "5")
MODEL = "results/tiny"
RECIPE = "apart/checkpoint/gramprune.json"
REFINED = "dense/block_000/masks/wanda_0.5_row+sparseswaps.safetensors"
TARGETS = (f"{MODEL}/{RECIPE}", f"{MODEL}/{REFINED}")
BITS = ("apart/checkpoint/*", "apart/block_*/*.safetensors", "dense/block_*/*.safetensors")
LOCAL = {"all", "fetch_model", "fetch_data"}  # they run where Snakemake does
GPU_JOBS = {"capture": 1, "mask": 1, "update": 1, "perplexity": 2}  # of one block
UPDATE = "rule_update_wildcards_tiny_apart_00{}"
REFINE = "rule_refine_wildcards_tiny_dense_000_wanda_0.5_row_sparseswaps"
ASSEMBLE = "rule_assemble_wildcards_tiny_apart"


@dataclass(frozen=True)
class Job:
    """What Slurm knows of a job; the same of two jobs that ask for the same, but for number and state."""

    number: str
    state: str
    stage: str  # rule and wildcards, which Snakemake passes as the job's comment
    memory: int  # MB
    minutes: int
    gpus: int

    @property
    def rule(self) -> str:
        return self.stage.split("_")[1]


class Submitting(Clone):
    """A clone whose Snakemake finds Slurm."""

    def jobs(self) -> list[Job]:
        """All jobs that this clone has ever submitted, in order."""
        columns = ("jobid", "state", "comment", "minmemory", "timelimit", "tres-per-job", "workdir")
        layout = ",".join(f"{column}:|" for column in columns)
        said = slurm.said(self.environment, "squeue", "--states=all", "--noheader", "--noconvert", "--Format", layout)
        found = []
        for line in said.splitlines():
            number, state, stage, memory, limit, devices, folder = line.split("|")[:7]
            if folder == str(self.folder):
                gpus = int(devices.rpartition(":")[2]) if "gpu" in devices else 0
                found.append(Job(number, state, stage, int(memory.rstrip("M")), minutes(limit), gpus))
        return sorted(found, key=lambda job: int(job.number))

    def states(self) -> dict[str, list[str]]:
        """How the jobs of every stage ended, in order."""
        found: dict[str, list[str]] = {}
        for job in self.jobs():
            found.setdefault(job.stage, []).append(job.state)
        return found

    def finish(self, *arguments: str) -> str:
        """Run Snakemake to its end; returns what it said."""
        done = self.snakemake(*arguments, *ON_SLURM)
        assert done.returncode == 0, done.stderr[-6000:]
        return done.stderr


def minutes(limit: str) -> int:
    """Slurm's [days-]hours:minutes:seconds."""
    days, _, clock = limit.rpartition("-")
    seconds = sum(int(part) * 60**place for place, part in enumerate(reversed(clock.split(":"))))
    return int(days or 0) * 1440 + seconds // 60


@pytest.fixture(scope="module")
def cluster():
    if lacking := slurm.missing():
        pytest.skip(f"needs Slurm and munge; not found: {', '.join(lacking)}")
    with slurm.cluster() as environment:
        yield environment


@pytest.fixture
def finished(cluster, clone, tmp_path) -> Submitting:
    """A copy of the clone in which everything has run on this machine: what is deleted has to be made on Slurm."""
    copy = Submitting(tmp_path, cluster)
    for name in ("config.yaml", "results", ".snakemake"):
        source, target = clone.folder / name, copy.folder / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
    return copy


def asked(clone: Clone, *targets: str) -> list[Job]:
    """The jobs that the dry run announces."""
    done = clone.snakemake(*targets, *ON_SLURM, "--dry-run")
    assert done.returncode == 0, done.stderr[-6000:]
    found = []
    for line in done.stdout.splitlines():
        key, _, rest = line.strip().partition(": ")
        if line.startswith(("rule ", "localrule ")):
            rule = line.split()[1].rstrip(":")
            stage = "" if rule in LOCAL else f"rule_{rule}"
        elif key == "wildcards" and stage:
            values = [pair.split("=", 1)[1] for pair in rest.split(", ")]
            stage += "_wildcards_" + "_".join(values)
        elif key == "resources" and stage:
            wants = dict(pair.split("=", 1) for pair in rest.split(", "))
            found.append(Job("", "", stage, int(wants["mem_mb"]), int(wants["runtime"]), int(wants.get("gpu", 0))))
    return found


def delete(clone: Clone, *patterns: str) -> None:
    for pattern in patterns:
        paths = list((clone.folder / MODEL).glob(pattern))
        assert paths, pattern
        for path in paths:
            path.unlink()


def contents(clone: Clone, *patterns: str) -> dict[str, bytes]:
    """Files of the model's results, by name."""
    folder = clone.folder / MODEL
    paths = {path for pattern in patterns for path in folder.glob(pattern)}
    assert paths
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def written(clone: Clone) -> dict[str, int]:
    """When every file of the model's results was written."""
    folder = clone.folder / MODEL
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def rewritten(clone: Clone, before: dict[str, int]) -> set[str]:
    """What has been written, or has gone, since `before`."""
    return {name for name, _ in before.items() ^ written(clone).items()}


@contextmanager
def started(clone: Submitting, *arguments: str) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Snakemake in the background and the file with what it says."""
    log = clone.folder / "said.log"
    with open(log, "w") as file:
        snakemake = clone.start(*arguments, *ON_SLURM, stdout=file, stderr=file)
    try:
        yield snakemake, log
    finally:
        snakemake.kill()
        snakemake.wait()


def held(clone: Submitting, snakemake: subprocess.Popen, stages: set[str]) -> dict[str, tuple[str, psutil.Process]]:
    """Stop the processes of those stages as soon as they run; returns the number of each one's job, and the process."""
    found: dict[str, tuple[str, psutil.Process]] = {}
    scripts = f"{clone.folder}/.snakemake/scripts/"

    def all_held() -> bool:
        assert snakemake.poll() is None, "Snakemake has ended"
        jobs = {job.number: job.stage for job in clone.jobs() if job.stage in stages - found.keys()}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if any(word.startswith(scripts) for word in process.cmdline()):
                    number = process.environ().get("SLURM_JOB_ID", "")
                    if number in jobs:
                        process.send_signal(signal.SIGSTOP)
                        found[jobs[number]] = number, process
        return found.keys() == stages

    slurm.until(all_held, f"not all of {stages} came to run", seconds=300)
    return found


@contextmanager
def drained(cluster: dict[str, str]) -> Iterator[None]:
    """The node takes no new jobs for a while."""
    node = ("scontrol", "update", f"nodename={slurm.NODE}")
    slurm.said(cluster, *node, "state=drain", "reason=test")
    try:
        yield
    finally:
        slurm.said(cluster, *node, "state=resume")


def test_every_stage_is_a_job_with_the_resources_of_its_rule_and_makes_the_same_bits(
    cluster, config, tokenizer, tmp_path
):
    """Of a model with one block: a job of Slurm starts three Pythons."""
    save_llama(tmp_path / "tiny", seed=0, num_hidden_layers=1)
    tokenizer.save_pretrained(tmp_path / "tiny")
    runs = [run for run in config["runs"] if run["name"] == "apart"]
    clones = []
    for name, environment in (("here", None), ("there", cluster)):
        (tmp_path / name).mkdir()
        clones.append(Submitting(tmp_path / name, environment))
        clones[-1].write({**config, "model": str(tmp_path / "tiny"), "runs": runs})
    here, there = clones
    here.run()
    announced = asked(there)
    said = there.finish()
    jobs = there.jobs()
    assert {job.state for job in jobs} == {"COMPLETED"}, said
    assert Counter(replace(job, number="", state="") for job in jobs) == Counter(announced)
    rules = Counter(job.rule for job in jobs)
    assert rules == {**GPU_JOBS, "calibrate": 1, "assemble": 1, "summary": 1, "report": 1}
    assert Counter(job.rule for job in jobs if job.gpus) == GPU_JOBS
    assert contents(there, *BITS) == contents(here, *BITS)


def test_stages_of_a_block_can_share_a_job(finished, clone):
    delete(finished, "dense/block_*/masks/wanda_0.5_row.*", "apart/block_*/weights.*", RECIPE, REFINED)
    groups = (f"{rule}=block" for rule in ("mask", "refine", "update"))
    finished.finish(*TARGETS, "--groups", *groups)
    assert Counter(job.stage for job in finished.jobs()) == {
        "rule_block_mask_refine_update": 1,
        "rule_block_mask_update": 2,
        ASSEMBLE: 1,
    }
    assert contents(finished, *BITS, REFINED) == contents(clone, *BITS, REFINED)


def test_jobs_that_are_hit_are_submitted_again_and_no_others(cluster, finished, clone):
    cancelled, slow, unharmed = (UPDATE.format(block) for block in range(3))
    delete(finished, "apart/block_*/weights.*", RECIPE, REFINED)
    before = written(finished)
    resources = ("update:runtime=attempt", "refine:mem_mb=100*20**(attempt-1)")
    with started(finished, *TARGETS, "--set-resources", *resources) as (snakemake, log):
        hit = held(finished, snakemake, {cancelled, slow})
        with drained(cluster):
            slurm.said(cluster, "scancel", hit[cancelled][0])
            slurm.until(lambda: finished.states()[cancelled][1:] == ["PENDING"], "not submitted again\n", log, 120)
        assert snakemake.wait(300) == 0, log.read_text()
    assert finished.states() == {
        cancelled: ["CANCELLED", "COMPLETED"],
        slow: ["TIMEOUT", "COMPLETED"],
        unharmed: ["COMPLETED"],
        REFINE: ["FAILED", "COMPLETED"],  # OUT_OF_MEMORY where control groups watch
        ASSEMBLE: ["COMPLETED"],
    }
    assert [job.minutes for job in finished.jobs() if job.stage == slow] == [1, 2]
    assert [job.memory for job in finished.jobs() if job.stage == REFINE] == [100, 2000]
    said = log.read_text()
    for state in ("CANCELLED", "TIMEOUT", "FAILED"):
        assert f"SLURM status is: '{state}'" in said
    (of_slurm,) = (finished.folder / ".snakemake/slurm_logs").glob("rule_refine/*/*.log")
    assert str(of_slurm) in said and "exceeded memory limit" in of_slurm.read_text()
    made = ("apart/block_*/weights.*", "apart/checkpoint/*", REFINED.replace(".safetensors", ".*"))
    assert rewritten(finished, before) == set(contents(finished, *made))
    assert contents(finished, *BITS, REFINED) == contents(clone, *BITS, REFINED)


def test_jobs_that_outlive_their_snakemake_do_no_harm_to_the_next_one(cluster, finished, clone):
    going_on, cancelled = UPDATE.format(0), UPDATE.format(1)
    delete(finished, "apart/block_00[01]/weights.*", RECIPE)
    with started(finished, TARGETS[0]) as (snakemake, _):
        old = held(finished, snakemake, {going_on, cancelled})
        snakemake.kill()
    assert "--unlock" in finished.snakemake(TARGETS[0], *ON_SLURM).stderr
    finished.run("--unlock")
    finished.finish(TARGETS[0])
    before = written(finished)
    old[going_on][1].send_signal(signal.SIGCONT)
    slurm.said(cluster, "scancel", old[cancelled][0])
    slurm.until(lambda: not slurm.said(cluster, "squeue", "--noheader"), "jobs do not end", seconds=120)
    assert finished.states() == {
        going_on: ["COMPLETED", "COMPLETED"],
        cancelled: ["CANCELLED", "COMPLETED"],
        ASSEMBLE: ["COMPLETED"],
    }
    assert rewritten(finished, before) == set(contents(finished, "apart/block_000/weights.*"))
    assert contents(finished, *BITS) == contents(clone, *BITS)
    assert "Nothing to be done" in finished.snakemake(TARGETS[0], *ON_SLURM, "--dry-run").stdout
