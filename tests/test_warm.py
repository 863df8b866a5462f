"""The process from which jobs are forked: what dies with what, and what is done without it."""

import errno
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, Clone

SCRIPTS = ROOT / "workflow/scripts"
sys.path.append(str(SCRIPTS))
import warm  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux only")
ASK = """
import os, sys, time
sys.path.insert(0, {scripts!r})
from job import ask_warm, process_start
request = {{
    "module": {module!r}, "function": {function!r}, "arguments": {arguments!r}, "where": "here", "log": "a.log",
    "threads": 1, "gpus": {gpus}, "online": False, "began": process_start(),
}}
print(ask_warm.ask(request), *[request[key] for key in ("note",) if key in request], flush=True)
"""


@pytest.fixture(params=["forks", "workers"])
def door(request, tmp_path):
    """The socket of a warm process, and that process."""
    path = tmp_path / "warm"
    with warm.start(str(path), request.param) as process:
        yield path, process
        process.stdin.close()
        assert process.wait(60) == 0


def until(true) -> None:
    """Wait for it, up to a minute."""
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError(f"{true} never was")


def asking(door: Path, module: str, function: str, gpus: int = 0, **arguments) -> subprocess.Popen:
    """A job that asks the warm process to call a function."""
    program = ASK.format(scripts=str(SCRIPTS), module=module, function=function, gpus=gpus, arguments=arguments)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "GRAMPRUNE_WARM": str(door), "WHO": "asks"}
    return subprocess.Popen([sys.executable, "-c", program], cwd=door.parent, env=environment, **pipes)


@contextmanager
def waiting(door: Path):
    """A job that asks and the fork that works for it, which waits for ever."""
    process = asking(door, "signal", "pause")
    try:
        log = door.parent / "a.log"  # begun by the fork
        until(log.exists)
        yield process, next(pid for pid in pids() if pid != process.pid and holds(pid, log))
    finally:
        process.kill()
        process.communicate()


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def holds(pid: int, file: Path) -> bool:
    """Whether a process has this file open."""
    try:
        return any(entry.resolve() == file.resolve() for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_a_fork_works_where_the_job_is_with_its_environment_its_output_and_its_status(door):
    path, _ = door
    done = asking(path, "subprocess", "check_call", args=["sh", "-c", "pwd; echo $WHO $PPID; echo oh >&2"])
    stdout, stderr = done.communicate(timeout=60)
    folder, said, status = stdout.splitlines()
    assert folder == str(path.parent) and said.split()[0] == "asks" and int(said.split()[1]) != done.pid
    assert stderr.startswith("oh\n") and "here: start-up" in stderr and status == "0"
    failed = asking(path, "subprocess", "check_call", args=["false"])
    stdout, stderr = failed.communicate(timeout=60)
    assert stdout == "1\n" and "CalledProcessError" in stderr


def test_a_worker_does_one_job_after_the_other_until_one_fails_and_two_at_once_need_two(tmp_path):
    def does(*arguments):
        done = asking(path, "subprocess", "check_call", args=[*arguments])
        stdout, stderr = done.communicate(timeout=60)
        assert "here: start-up" in stderr or stdout == "1\n"
        return stdout.splitlines()

    path = tmp_path / "warm"
    with warm.start(str(path), "workers") as process:
        first, again = (does("sh", "-c", "echo $PPID") for _ in range(2))
        assert first == again and does("false") == ["1"]
        other = does("sh", "-c", "echo $PPID")
        assert other != first
        slow = asking(path, "subprocess", "check_call", args=["sh", "-c", "echo $PPID; read line < pipe"])
        os.mkfifo(tmp_path / "pipe")
        assert [slow.stdout.readline().strip()] == other[:1]
        assert does("sh", "-c", "echo $PPID") != other
        (tmp_path / "pipe").write_text("go on\n")
        assert slow.communicate(timeout=60)[0] == "0\n"
        workers = {int(other[0])}
        process.stdin.close()
        assert process.wait(60) == 0
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_on_one_gpu_jobs_wait_for_each_other(tmp_path):
    """The worker keeps its GPU; that nothing computes on one here does not matter."""
    path = tmp_path / "warm"
    os.mkfifo(tmp_path / "pipe")
    with warm.start(str(path), "workers") as process:
        wait = ["sh", "-c", "echo $PPID; read line < pipe"]
        jobs = [asking(path, "subprocess", "check_call", gpus=1, args=wait) for _ in range(2)]
        jobs.sort(key=lambda job: not select.select([job.stdout], [], [], 10)[0])
        first = jobs[0].stdout.readline()
        assert not select.select([jobs[1].stdout], [], [], 1)[0]
        (tmp_path / "pipe").write_text("go on\n")
        assert jobs[0].communicate(timeout=60)[0] == "0\n"
        assert jobs[1].stdout.readline() == first
        (tmp_path / "pipe").write_text("go on\n")
        assert jobs[1].communicate(timeout=60)[0] == "0\n"
        process.stdin.close()
        assert process.wait(60) == 0


def test_a_job_that_is_sooner_than_the_warm_process_waits_for_it(tmp_path):
    with warm.start(str(tmp_path / "warm")) as process:
        process.send_signal(signal.SIGSTOP)
        job = asking(tmp_path / "warm", "subprocess", "check_call", args=["true"])
        with pytest.raises(subprocess.TimeoutExpired):
            job.communicate(timeout=1)
        process.send_signal(signal.SIGCONT)
        assert job.communicate(timeout=60)[0] == "0\n"
        process.stdin.close()
        assert process.wait(60) == 0


def test_a_killed_fork_kills_the_job_that_asked(door):
    with waiting(door[0]) as (job, fork):
        os.kill(fork, signal.SIGKILL)
        assert job.wait(60) == -signal.SIGKILL


def test_the_fork_of_a_killed_job_ends(door):
    with waiting(door[0]) as (job, fork):
        job.kill()
        until(lambda: not Path(f"/proc/{fork}").exists())


def test_a_fork_outlives_the_warm_process_which_ends_with_its_input(door):
    path, process = door
    with waiting(path) as (job, fork):
        process.stdin.close()
        assert process.wait(60) == 0
        time.sleep(0.2)
        assert job.poll() is None and Path(f"/proc/{fork}").exists()


def test_where_nobody_answers_a_job_is_told_so_and_has_a_note_for_its_log(tmp_path):
    stdout, _ = asking(tmp_path / "nobody", "signal", "pause").communicate(timeout=60)
    why = os.strerror(errno.ENOENT)
    assert stdout == f"None starts by itself, seconds slower: no warm process answers ({why})\n"


def test_a_killed_warm_process_is_missed_aloud(door):
    path, process = door
    process.kill()
    process.wait()
    stdout, _ = asking(path, "signal", "pause").communicate(timeout=60)
    assert f"no warm process answers ({os.strerror(errno.ECONNREFUSED)})" in stdout
    process.returncode = 0  # it was meant to


def test_a_socket_may_lie_in_a_folder_whose_path_is_too_long_for_an_address(tmp_path):
    folder = tmp_path.joinpath(*["a folder with a long name"] * 6)
    folder.mkdir(parents=True)
    path = folder / "warm"
    assert len(str(path)) > 108
    with warm.start(str(path)) as process:
        stdout, stderr = asking(path, "subprocess", "check_call", args=["true"]).communicate(timeout=60)
        assert stdout == "0\n" and "here: start-up" in stderr
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "scancel"])
def test_an_interrupted_job_ends_with_its_fork_in_a_word(door, number):
    with waiting(door[0]) as (job, fork):
        job.send_signal(number)
        stdout, stderr = job.communicate(timeout=60)
        assert (stdout, stderr) == ("130\n", "here: interrupted\n")
        until(lambda: not Path(f"/proc/{fork}").exists())
        assert (door[0].parent / "a.log").read_text() == "here: interrupted\n"


@pytest.mark.parametrize("module, function, size", [("builtins", "bytearray", 1 << 60), ("torch", "empty", 1 << 58)])
def test_memory_that_is_not_to_be_had_is_said_in_a_sentence(tmp_path, module, function, size):
    program = f"""
import sys; sys.path.insert(0, {str(SCRIPTS)!r})
import work; from importlib import import_module
work.large = lambda: import_module({module!r}).{function}({size})
work.leave(work.work("work", "large", {{}}, "here", "a.log", 1, False, False, 0.0))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("gramprune: here: there is not enough memory (") and "batch_size" in done.stderr


def test_a_stage_that_cannot_be_imported_is_left_to_the_job_which_says_why(tmp_path):
    path = tmp_path / "warm"
    with warm.start(str(path), stderr=subprocess.PIPE, text=True) as process:
        stdout, _ = asking(path, "not_there", "pause").communicate(timeout=60)
        assert stdout.startswith("None starts by itself")
        assert process.wait(60) != 0 and "not_there" in process.stderr.read()


@pytest.mark.slow
def test_workers_make_the_bytes_that_forks_make(clone, config, tmp_path):
    runs = [run for run in config["runs"] if run["name"] in ("chain", "refined")]
    other = Clone(tmp_path, {**os.environ, "GRAMPRUNE_WORKERS": "1"})
    other.write({**config, "device": "cpu", "runs": runs})
    other.run()
    made = [path for path in (tmp_path / "results").rglob("*.safetensors") if "checkpoint" in path.parts]
    assert len(made) == 2 * 3  # shards
    for path in made:
        assert path.read_bytes() == (clone.folder / path.relative_to(tmp_path)).read_bytes()
    starts = [path.read_text() for path in (tmp_path / "results/logs").rglob("capture.log")]
    assert sum(float(text.split("start-up ")[1].split()[0]) < 1 for text in starts) > len(starts) / 2
