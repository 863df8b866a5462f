"""What a person sees of real Snakemake runs: in a terminal, without one, and when something goes wrong."""

import os
import pty
import re
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Clone, changed

LOCAL = ("--profile", "local", "--cores", "1")
LIVE = "\x1b[J"  # what is below the cursor goes away, before new lines are drawn
UPDATE = "results/tiny/apart/block_000/weights.safetensors"
GRAM = "results/tiny/dense/block_000/gram.safetensors"
LOG = "results/logs/tiny/apart/block_000/update.log"


@pytest.fixture(scope="module")
def world(config, tmp_path_factory) -> Clone:
    """A clone with all that the update of block 0 needs. Tests make that update, and take it away."""
    clone = Clone(tmp_path_factory.mktemp("screen"))
    clone.write(changed(config, lambda c: c.update(runs=[run for run in c["runs"] if run["name"] == "apart"])))
    clone.run(UPDATE)
    return clone


@pytest.fixture
def due(world):
    """The same, in which the update is to be made."""
    gram = world.folder / GRAM
    before, times = gram.read_bytes(), gram.stat()
    (world.folder / UPDATE).unlink(missing_ok=True)
    yield world
    gram.write_bytes(before)
    os.utime(gram, ns=(times.st_atime_ns, times.st_mtime_ns))


def damage(clone: Clone) -> None:
    """Cut off what the update reads, as old as it was: Snakemake does not see that."""
    gram = clone.folder / GRAM
    times = gram.stat()
    gram.write_bytes(gram.read_bytes()[:100])
    os.utime(gram, ns=(times.st_atime_ns, times.st_mtime_ns))


def in_terminal(clone: Clone, *arguments: str, meanwhile=lambda started, said: None) -> tuple[int, str]:
    """Run Snakemake in a pseudo-terminal; its exit status and all that it wrote there."""
    ours, theirs = pty.openpty()
    pieces: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(ours, 1 << 16):
                pieces.append(piece)
        except OSError:  # the other end was closed
            pass

    where = Clone.__new__(Clone)
    where.folder, where.environment = clone.folder, {**os.environ, "TERM": "xterm"}
    started = where.start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        meanwhile(started, lambda: b"".join(pieces).decode())
        status = started.wait(300)
    finally:
        started.kill()
        reader.join()
        os.close(ours)
    return status, b"".join(pieces).decode().replace("\r\n", "\n")


def left_on_screen(written: str) -> list[str]:
    """The lines that a terminal shows at the end, by the three codes that we use."""
    lines = [""]
    row = 0
    for part in re.split(r"(\x1b\[\d*[AJm]|\x1b\[\d+m|\r|\n)", written):
        if re.fullmatch(r"\x1b\[\d*A", part):
            row -= int(part[2:-1])
        elif part == LIVE:
            del lines[row + 1 :]
            lines[row] = ""
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return [line for line in lines if line and not line.startswith("Using ")]


def of_ours(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stderr.splitlines() if not line.startswith("Using ")]


def test_without_a_terminal_a_finished_job_is_a_line_with_what_is_done_and_left(due):
    done = due.snakemake(*LOCAL, "-R", "mask", "--", UPDATE)
    assert done.returncode == 0, done.stderr
    mask, update = of_ours(done)
    assert re.fullmatch(r"mask tiny dense 000 .*; start-up .* MiB; 1 of 2, about [\d.]+ (s|min) left", mask)
    assert re.fullmatch(r"update tiny apart 000: .*; start-up .* MiB; 2 of 2", update)


def test_in_a_terminal_one_live_status_says_what_runs_and_goes_away(due):
    status, written = in_terminal(due, *LOCAL, UPDATE)
    assert status == 0, written
    assert LIVE in written and re.search(r"0 of 1 jobs done, about \d+ s left, 0:\d\d so far", written)
    assert re.search(r"  update of block 0, apart  0:\d\d", written)
    [end] = left_on_screen(written)
    assert re.fullmatch(r"1 of 1 jobs done, 0:\d\d in all", end)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_failed_job_says_why_once_and_where_its_log_is(due, terminal):
    damage(due)
    if terminal:
        status, written = in_terminal(due, *LOCAL, UPDATE)
        lines = left_on_screen(written)
    else:
        done = due.snakemake(*LOCAL, UPDATE)
        status, lines = done.returncode, of_ours(done)
    assert status == 1
    sentence, log, advice, *end = lines
    assert sentence.startswith("gramprune: update tiny apart 000: ") and GRAM in sentence
    assert log.split() == ["log:", LOG]
    assert advice == "What is finished stays, and the same command goes on from there."
    assert [re.sub(r"\d:\d\d", "T", line) for line in end] == ["0 of 1 jobs done, 1 failed, T in all"] * terminal


@contextmanager
def doing(clone: Clone, what: str):
    """While the update's script does this instead, once it has been begun as always."""
    script = clone.folder / "workflow/scripts/update.py"
    before, times = script.read_text(), script.stat()
    script.write_text(f"import os, signal, time\nimport job\n{what}\n")
    os.utime(script, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        yield
    finally:
        script.write_text(before)
        os.utime(script, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "end, words",
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "died with <Signals.SIGKILL: 9>"),
        (f"open('{LOG}', 'w').close(); os._exit(1)", "non-zero exit status 1"),  # as of a step that Slurm has killed
    ],
    ids=["killed", "log without an end"],
)
def test_a_job_that_could_not_say_why_is_told_of_in_snakemakes_words_with_advice(due, end, words):
    with doing(due, end):
        done = due.snakemake(*LOCAL, UPDATE)
    assert done.returncode == 1
    assert words in done.stderr and "Error in rule update:" in done.stderr
    assert "A job was killed, mostly for lack of memory" in done.stderr


def test_ctrl_c_ends_it_with_a_word_and_a_clean_screen(due):
    begun = due.folder / "begun"

    def interrupt(started, said):
        until = time.monotonic() + 120
        while not (begun.exists() and "update of block" in said()) and time.monotonic() < until:
            time.sleep(0.01)
        os.killpg(started.pid, signal.SIGINT)

    with doing(due, "open('begun', 'w').close()\ntime.sleep(200)"):
        status, written = in_terminal(due, *LOCAL, UPDATE, meanwhile=interrupt)
    assert status != 0
    lines = left_on_screen(written)
    assert "CalledProcessError" not in written and "Traceback" not in written, lines
    assert any("user request" in line or line.endswith(": interrupted") for line in lines), lines
    assert "jobs done" in lines[-1], lines


def test_what_was_asked_for_is_said_in_snakemakes_words(due):
    misspelt = due.snakemake(*LOCAL, "results/repotr.html")
    assert misspelt.returncode and "No rule to produce results/repotr.html" in misspelt.stderr
    assert "Unlock" in due.snakemake(*LOCAL, "--unlock").stderr
    dry = due.snakemake(*LOCAL, "--dry-run", UPDATE).stdout
    assert "Job stats:" in dry and "rule update:" in dry
    verbose = due.snakemake(*LOCAL, "--verbose", UPDATE).stderr
    assert "1 of 1 steps (100%) done" in verbose and "update tiny apart 000: " in verbose
    assert of_ours(due.snakemake(*LOCAL, UPDATE)) == [
        "Nothing to be done (all requested files are present and up to date)."
    ]


def test_plain_snakemake_says_what_it_always_does(due):
    done = due.snakemake(UPDATE)
    assert done.returncode == 0 and "1 of 1 steps (100%) done" in done.stderr
    assert Path(due.folder / LOG).read_text().splitlines()[-1] in done.stderr.splitlines()


def test_a_job_under_way_knows_best_how_long_it_will_take(world, monkeypatch):
    from gramprune.experiment import checks, configfile
    from gramprune.experiment.countdown import Countdown

    monkeypatch.chdir(world.folder)
    config = configfile.read("config.yaml")
    config["model"] = ["demo", config["model"]]
    settings, layouts = checks.check(config, planning=True)
    logs = {name: Path("results/logs") / name for name in ("demo/fetch_model.log", "tiny/apart/block_002/update.log")}
    training, update = logs.values()
    count = Countdown(settings, layouts, logs.values(), at_once=1)
    assert count.words(training) == "training of demo" and count.words(update) == "update of block 2, tiny, apart"
    count.start(training)
    count.hear(training, "demo: step 87 of 2400, loss 5.092, 3600 s left")
    assert count.left() in ("60 min", "61 min", "62 min")
    count.finish(training)
    count.finish(update)
    assert count.left() == ""
