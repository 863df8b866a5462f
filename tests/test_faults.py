"""Faults under real Snakemake runs: what is finished stays, what was hit is made again, and the bytes are the same."""

import copy
import errno
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from conftest import Clone, changed
from problems import assert_sentence
from test_errors import assert_one_sentence

from gramprune import GrampruneError
from gramprune.storage import artifacts, files

TINY = Path("results/tiny")
BLOCK = TINY / "apart/block_002"  # of a run with dense propagation: the last job before its checkpoint
WEIGHTS = BLOCK / "weights.safetensors"
CHECKPOINT = TINY / "apart/checkpoint"
TARGET = str(CHECKPOINT / "gramprune.json")
DENSE = TINY / "dense/block_002"  # what that block was pruned with
GRAM = DENSE / "gram.safetensors"
MASK = DENSE / "masks/wanda_0.5_row.safetensors"
UPDATED = {WEIGHTS, BLOCK / "weights.json", CHECKPOINT}
MASKED = {MASK, MASK.with_suffix(".json")}
CAPTURED = {GRAM, GRAM.with_suffix(".json"), DENSE / "inputs.safetensors"}


class Copy:
    """A copy of the finished clone in which the last job before a checkpoint, and that checkpoint, are to be made."""

    def __init__(self, clone: Clone, folder: Path):
        shutil.copytree(clone.folder, folder)
        self.origin, self.clone, self.folder = clone.folder, copy.copy(clone), folder
        self.clone.folder = folder
        self.lose(WEIGHTS, BLOCK / "weights.json")
        shutil.rmtree(folder / CHECKPOINT)
        self.before = self.places()

    def lose(self, *paths: Path) -> None:
        for path in paths:
            (self.folder / path).unlink()

    def places(self) -> dict[Path, tuple[int, int]]:
        """Every result and where and when it was written; a checkpoint by its last file."""
        found = {}
        for path in sorted((self.folder / "results").rglob("*")):
            name = path.relative_to(self.folder)
            if path.is_file() and name.parts[1] != "logs":
                found[CHECKPOINT if CHECKPOINT in name.parents else name] = path.stat().st_ino, path.stat().st_mtime_ns
        return found

    def assert_mended(self, remade: set[Path]) -> None:
        """The checkpoint has its bytes; these files were made again and no others; the tables are due."""
        folders = (self.origin / CHECKPOINT, self.folder / CHECKPOINT)
        expected, found = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
        assert found == expected
        now = self.places()
        assert {path for path in {*now, *self.before} if now.get(path) != self.before.get(path)} == remade
        assert not leftovers(self.folder)
        assert self.clone.planned() == Counter({("summary", None): 1, ("report", None): 1})

    @contextmanager
    def stopped(self, *targets: str):
        """Snakemake at work and the process of its first job, held while its output is half written."""
        with open(self.folder / "said", "w") as said:
            pipes = {"stdout": said, "stderr": subprocess.STDOUT, "preexec_fn": lambda: os.nice(5)}  # we look often
            snakemake = self.clone.start(*(targets or [TARGET]), **pipes)
        job = None
        try:
            while job is None:
                assert snakemake.poll() is None, self.said
                for part in (self.folder / TINY / "apart").glob("block_*/.weights.safetensors.*.part"):
                    job = int(part.name.partition("@")[0].rpartition(".")[2])
                    os.kill(job, signal.SIGSTOP)
                time.sleep(0.001)
            time.sleep(0.1)
            assert part.exists() and not (part.parent / "weights.safetensors").exists()
            yield snakemake, job
        finally:
            for pid in (snakemake.pid, job):
                with suppress(ProcessLookupError, TypeError):
                    os.kill(pid, signal.SIGKILL)
            snakemake.wait()

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()


@pytest.fixture
def broken(clone, tmp_path) -> Copy:
    return Copy(clone, tmp_path / "copy")


def leftovers(folder: Path) -> list[Path]:
    return list((folder / "results").rglob(".*.part"))


def finish(job: int) -> None:
    """Let a held process go on, to its end."""
    os.kill(job, signal.SIGCONT)
    with suppress(ProcessLookupError):
        for _ in range(6000):
            os.kill(job, 0)
            time.sleep(0.01)
        raise AssertionError(f"{job} goes on and on")


@pytest.mark.slow
def test_a_finished_folder_that_was_copied_has_nothing_to_do_or_is_told_so_where_dates_are_lost(clone, tmp_path):
    moved = copy.copy(clone)
    moved.folder = tmp_path / "moved"
    shutil.copytree(clone.folder, moved.folder)
    assert moved.planned() == Counter()
    shutil.copytree(moved.folder, tmp_path / "dateless", copy_function=shutil.copyfile)
    moved.folder = tmp_path / "dateless"
    assert moved.planned()
    moved.run("--touch")
    assert moved.planned() == Counter()


@pytest.mark.slow
def test_a_killed_job_leaves_nothing_that_is_taken_for_whole_and_costs_that_job(broken):
    with broken.stopped() as (snakemake, job):
        assert sys.platform != "linux" or b"warm.py" in Path(f"/proc/{job}/cmdline").read_bytes()
        os.kill(job, signal.SIGKILL)
        assert snakemake.wait(120) != 0
    assert "Error in rule update" in broken.said and "SIGKILL" in broken.said
    assert not (broken.folder / WEIGHTS).exists()
    [part] = leftovers(broken.folder)
    with pytest.raises(GrampruneError) as error:
        artifacts.read(part)
    assert_sentence(error, part, "is not a whole safetensors file")
    broken.clone.run(TARGET)
    broken.assert_mended(UPDATED)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "scancel"])
def test_an_interrupted_job_leaves_nothing_half_written_and_says_so_in_a_word(broken, number):
    with broken.stopped() as (snakemake, job):
        os.kill(job, number)
        os.kill(job, signal.SIGCONT)
        assert snakemake.wait(120) != 0
    assert "update tiny apart 002: interrupted" in broken.said
    assert "not foreseen" not in broken.said and "Traceback" not in broken.said
    assert not leftovers(broken.folder) and not (broken.folder / WEIGHTS).exists()
    broken.clone.run(TARGET)
    broken.assert_mended(UPDATED)


@pytest.mark.slow
def test_after_a_killed_snakemake_its_messages_lead_to_the_end(broken):
    with broken.stopped() as (snakemake, job):
        snakemake.kill()
        snakemake.wait()
        locked = broken.clone.snakemake(TARGET)
        assert locked.returncode != 0 and "caused by a kill signal" in locked.stderr and "--unlock" in locked.stderr
        finish(job)  # it knows nothing of all that
    broken.clone.run("--unlock")
    incomplete = broken.clone.snakemake(TARGET)
    assert incomplete.returncode != 0 and "--rerun-incomplete" in incomplete.stderr
    assert f"Incomplete files:\n{WEIGHTS}" in incomplete.stderr
    broken.clone.run(TARGET, "--rerun-incomplete")
    broken.assert_mended(UPDATED)


@pytest.mark.slow
def test_a_terminated_snakemake_lets_its_job_finish_and_ends(broken):
    """Whenever the signal comes: its own handler waits for a lock that it has itself while it takes a job's files."""
    with broken.stopped() as (snakemake, job):
        os.kill(job, signal.SIGCONT)
        for _ in range(12000):
            snakemake.terminate()
            if snakemake.poll() is not None:
                break
            time.sleep(0.01)
        assert snakemake.returncode not in (None, 0)
    assert "exit after finishing currently running jobs" in broken.said and "Traceback" not in broken.said
    assert (broken.folder / WEIGHTS).exists() and not (broken.folder / CHECKPOINT).exists()
    broken.clone.run(TARGET)
    broken.assert_mended(UPDATED)


@pytest.mark.slow
def test_a_job_that_outlives_its_snakemake_does_no_harm(broken):
    with broken.stopped() as (snakemake, job):
        snakemake.kill()
        snakemake.wait()
        broken.clone.run("--unlock")
        broken.clone.run(TARGET)  # the same stage, a second time
        first = (broken.folder / WEIGHTS).stat().st_ino
        assert len(leftovers(broken.folder)) == 1  # it is still being written
        finish(job)
    assert (broken.folder / WEIGHTS).stat().st_ino != first
    assert (broken.folder / WEIGHTS).read_bytes() == (broken.origin / WEIGHTS).read_bytes()
    broken.assert_mended(UPDATED)


@pytest.mark.slow
def test_a_second_snakemake_is_told_of_the_first_which_goes_on_undisturbed(broken):
    with broken.stopped() as (snakemake, job):
        second = broken.clone.snakemake(TARGET)
        assert second.returncode != 0 and "no other Snakemake process" in second.stderr
        assert str(broken.folder) in second.stderr and "rule update" not in second.stderr
        os.kill(job, signal.SIGCONT)
        assert snakemake.wait(120) == 0, broken.said
    broken.assert_mended(UPDATED)


@pytest.mark.slow
def test_a_configuration_edited_during_a_run_counts_from_the_next_start(broken, config):
    targets = [TINY / f"apart/block_{block}/weights.safetensors" for block in ("001", "002")]
    broken.lose(targets[0])
    apart = config["runs"].index(next(run for run in config["runs"] if run["name"] == "apart"))
    update = {"method": "admm", "iterations": 10}
    broken.clone.write(changed(config, lambda c: c["runs"][apart].update(update=update)))
    with broken.stopped(*map(str, targets), "--cores", "1") as (snakemake, job):
        broken.clone.write(config)
        os.kill(job, signal.SIGCONT)
        assert snakemake.wait(120) == 0, broken.said
    for path in targets:  # one job was running, the other began later
        found = artifacts.read(broken.folder / path).provenance["settings"]["options"]
        assert found["iterations"] == 10
    broken.clone.run(TARGET)
    broken.assert_mended(UPDATED | {targets[0], targets[0].with_suffix(".json")})
    recipe = json.loads((broken.folder / TARGET).read_text())
    assert {block["settings"]["options"]["iterations"] for block in recipe["blocks"]} == {20}


@pytest.mark.slow
def test_a_quota_is_said_with_file_and_remedy(broken):
    quota = ["sh", "-c", 'ulimit -f 32 && exec "$@"', "sh"]  # 16 KiB per file; the weights have more
    why = f"{os.strerror(errno.EFBIG)}; raise your limit on the size of files (ulimit -f), then run snakemake again"
    done = broken.clone.snakemake(TARGET, prefix=quota)
    assert_one_sentence(done, f"{WEIGHTS} could not be written: {why}; no other file was touched.")
    assert not leftovers(broken.folder)
    broken.clone.run(TARGET)
    broken.assert_mended(UPDATED)


def namespace(*options: str, trial: str) -> list[str]:
    """A command's prefix that runs it in a user namespace of its own, where root has no rights to other files."""
    prefix = ["unshare", "--user", *options]
    if shutil.which("unshare") is None or subprocess.run([*prefix, *trial.split()]).returncode:
        pytest.skip(f"not possible on this machine: {' '.join(prefix)} {trial}")
    return prefix


FILL = """
mount -t tmpfs -o size=64M none disk && cp -a results/. disk && mount --bind disk results && rm -r results/logs || exit
cat /dev/zero 2>/dev/null > results/filler
"$@"
ls -A results/tiny/apart
exit 1
"""


@pytest.mark.slow
def test_a_full_disk_is_said_with_file_and_remedy(broken):
    (broken.folder / "disk").mkdir()
    mounting = namespace("--map-root-user", "--mount", trial="mount -t tmpfs none /tmp")  # is seen in there only
    done = broken.clone.snakemake(TARGET, prefix=[*mounting, "sh", "-c", FILL, "sh"])
    why = f"{os.strerror(errno.ENOSPC)}; make room on that disk, then run snakemake again"
    assert_one_sentence(done, f"{WEIGHTS} could not be written: {why}; no other file was touched.")
    assert "block_001" in done.stdout and ".part" not in done.stdout
    broken.clone.run(TARGET)
    broken.assert_mended(UPDATED)


@pytest.mark.parametrize("results", ["new", "results"])
def test_a_read_only_results_folder_is_said_in_one_sentence(broken, config, results):
    unprivileged = namespace(trial="true") if os.geteuid() == 0 else []  # root may write everywhere
    broken.clone.write(changed(config, lambda c: c.update(results=results)))
    (broken.folder / results).mkdir(exist_ok=True)
    folders = [broken.folder / results, *(path for path in (broken.folder / results).rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        done = broken.clone.snakemake(TARGET.replace("results", results), prefix=unprivileged)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert_one_sentence(done, f"could not be written: {os.strerror(errno.EACCES)}; make its folder writable")
    assert f"results: {results} could not be written" in done.stderr
    assert broken.places() == broken.before


@pytest.mark.slow
def test_a_truncated_gram_matrix_is_refused_until_it_is_deleted(broken):
    path = broken.folder / GRAM
    cut = path.read_bytes()[:-10]
    path.write_bytes(cut)
    assert_one_sentence(broken.clone.snakemake(TARGET), f"{GRAM} is {len(cut):,} bytes long where its header says")
    assert path.read_bytes() == cut
    path.unlink()
    broken.clone.run(TARGET)
    broken.assert_mended(CAPTURED | MASKED | UPDATED)


def of_another_calibration(results: Path, path: Path) -> None:
    """The sums over twice the tokens, as far as a reader can tell."""
    gram = artifacts.read(results / "dense/block_002/gram.safetensors")
    artifacts.write(
        path, {name: 2 * gram.read(name) for name in gram.names}, {**gram.provenance, "calibration": "0" * 64}
    )


def of_another_run(results: Path, path: Path) -> None:
    shutil.copyfile(results / "chain/block_002/gram.safetensors", path)


def of_another_block(results: Path, path: Path) -> None:
    shutil.copyfile(results / "dense/block_001/gram.safetensors", path)


@pytest.mark.slow
def test_a_foreign_gram_matrix_is_refused_with_both_values_until_it_is_deleted(broken):
    for put in (of_another_block, of_another_run, of_another_calibration):
        put(broken.folder / TINY, broken.folder / GRAM)
        done = broken.clone.snakemake(TARGET)
        assert_one_sentence(done, f"{GRAM} was made for")
        assert "is expected here" in done.stderr and "delete it to have it made again" in done.stderr
    broken.lose(GRAM)
    broken.clone.run(TARGET)
    broken.assert_mended(CAPTURED | MASKED | UPDATED)


@pytest.mark.slow
def test_a_changed_gram_matrix_with_the_date_of_the_own_one_is_refused_for_the_mask_that_it_did_not_make(broken):
    path = broken.folder / GRAM
    gram, date = artifacts.read(path), path.stat().st_mtime_ns
    own = gram.digest
    artifacts.write(path, {name: 2 * gram.read(name) for name in gram.names}, gram.provenance)
    os.utime(path, ns=(date, date))  # as with cp -p: no trigger of Snakemake's
    done = broken.clone.snakemake(TARGET)
    assert_one_sentence(done, f"{MASK} was made from a Gram matrix with digest {own}, but {GRAM} has ")
    assert artifacts.read(path).digest in done.stderr
    broken.lose(GRAM)
    broken.clone.run(TARGET)
    broken.assert_mended(CAPTURED | MASKED | UPDATED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deleted", "remade"),
    [(GRAM, CAPTURED | MASKED | UPDATED), (MASK, MASKED | UPDATED), (DENSE / "inputs.safetensors", UPDATED)],
    ids=["gram", "mask", "inputs"],
)
def test_a_deleted_intermediate_is_made_again_where_it_is_needed(broken, deleted, remade):
    broken.lose(deleted)
    broken.clone.run(TARGET)
    assert (broken.folder / deleted).exists() == (deleted in remade)
    broken.assert_mended(remade | {deleted})


def write_again_and_again(path: Path, value: float, start, times: int = 100) -> None:
    start.wait()
    for _ in range(times):
        artifacts.write(path, {"x": torch.full((1000, 10), value)}, {"value": value})


def test_a_file_with_two_writers_is_always_one_of_the_two(tmp_path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    path = tmp_path / "a.safetensors"
    writers = [context.Process(target=write_again_and_again, args=(path, value, start)) for value in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    start.wait()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]
    whole = set()
    for value in (1.0, 2.0):
        artifacts.write(path, {"x": torch.full((1000, 10), value)}, {"value": value})
        whole.add(path.read_bytes())
    assert seen == whole


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_killed_processes_left_is_removed_and_what_is_being_written_is_not(tmp_path, kind):
    ended = subprocess.Popen(["true"])
    ended.wait()
    here, day = platform.node(), 86400
    ages = {  # of what lies there, in seconds
        f"{ended.pid}@{here}": 0,
        f"{os.getpid()}@{here}": 0,  # numbers come back
        f"{os.getppid()}@{here}": 2 * day,
        "1@elsewhere": 0,
        "2@elsewhere": 2 * day,
    }
    for writer, age in ages.items():
        part = tmp_path / f".[a].{writer}.part"
        part.write_text("half") if kind == "file" else (part / "deep").mkdir(parents=True)
        os.utime(part, (time.time() - age,) * 2)
    other = tmp_path / f".b.{ended.pid}@{here}.part"
    other.write_text("of another file")
    if kind == "file":
        files.write_json(tmp_path / "[a]", {})
    else:
        with files.atomic_folder(tmp_path / "[a]"):
            pass
    kept = {f".[a].{writer}.part" for writer in (f"{os.getppid()}@{here}", "1@elsewhere")}
    assert {path.name for path in tmp_path.iterdir()} == {"[a]", other.name} | kept
