"""Folders of results from strangers, or damaged, and what is the user's: a sentence or a page, and no byte is lost."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from conftest import Clone, changed, copied
from problems import assert_sentence
from safetensors.torch import save_file
from test_errors import assert_one_sentence
from test_report import BROWSER, opened

from gramprune.__main__ import run
from gramprune.errors import GrampruneError
from gramprune.report import finite, write_report
from gramprune.report.charts import all_charts
from gramprune.report.page import page
from gramprune.report.read import read
from gramprune.storage import files

NASTY = "<!--<script>]]></script>\u2028\n'\"\\&amp;"
Damage = Callable[[Path], None]


def text(content: str | None) -> Damage:
    """Another content, or none."""
    return lambda path: path.unlink() if content is None else path.write_text(content)


def value(*place: str | int, to: object = ...) -> Damage:
    """Another value in a JSON file, or none."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        inside = content
        for key in place[:-1]:
            inside = inside[key]
        if to is ...:
            del inside[place[-1]]
        else:
            inside[place[-1]] = to
        path.write_text(json.dumps(content))

    return damage


def column(name: str, content: list | object = ...) -> Damage:
    """Another column in a table, or none; one value stands for all rows."""

    def damage(path: Path) -> None:
        table = parquet.read_table(path)
        place = table.column_names.index(name)
        if content is ...:
            parquet.write_table(table.remove_column(place), path)
        else:
            values = content if isinstance(content, list) else [content] * len(table)
            parquet.write_table(table.set_column(place, name, arrow.array(values)), path)

    return damage


def first_rows(count: int) -> Damage:
    return lambda path: parquet.write_table(parquet.read_table(path).slice(0, count), path)


SUMMARY, LAYERS, EXPERIMENT = "summary.parquet", "layers.parquet", "experiment.json"
LAYOUT, FIGURES = "tiny/layout.json", "tiny/chain/evaluation/perplexity_evaluation.json"
RECIPE = "tiny/chain/checkpoint/gramprune.json"
DAMAGED = [
    (EXPERIMENT, text(None), "holds no results (experiment.json is missing): run snakemake to its end first."),
    (EXPERIMENT, text("{}"), "config is {}; expected: Field required"),
    (EXPERIMENT, text("[]"), "it is []; expected:"),
    (EXPERIMENT, text('{"config": '), "is not valid JSON"),
    (
        EXPERIMENT,
        value("config", "runs", 0, "sparsity", to="half"),
        "runs[0].sparsity: sparsity 'half' is not a fraction",
    ),
    (EXPERIMENT, value("config", "runs", 0, "name", to="../../home"), "runs[0].name is '../../home'"),
    (EXPERIMENT, value("config", "runs", 0, "name", to="other"), "has other rows than the runs of"),
    (EXPERIMENT, value("versions", "torch", to=2), "versions.torch is 2; expected: a valid string"),
    (SUMMARY, text(None), "does not exist: run snakemake"),
    (SUMMARY, text("no table"), "cannot be read as a table"),
    (SUMMARY, column("sparsity"), "has no column 'sparsity'"),
    (
        SUMMARY,
        column("perplexity_evaluation", "much"),
        "the column 'perplexity_evaluation' holds string, expected numbers",
    ),
    (SUMMARY, column("mask", 5), "the column 'mask' holds int64, expected text"),
    (SUMMARY, column("delta_low_evaluation", [[1.0]] * 7), "holds list<element: double>, expected numbers"),
    (SUMMARY, column("sparsity", [None] + [0.5] * 6), "a row has no sparsity"),
    (SUMMARY, first_rows(3), "has other rows than the runs of"),
    (LAYERS, text(None), "does not exist: run snakemake"),
    (LAYERS, text(""), "cannot be read as a table"),
    (LAYERS, column("error"), "has no column 'error'"),
    (LAYERS, column("relative_error", "none"), "the column 'relative_error' holds string, expected numbers"),
    (LAYERS, column("error_before", float("nan")), "a figure is missing or cannot be"),
    (LAYERS, column("curve", 1.0), "the column 'curve' holds double, expected lists of numbers"),
    (LAYOUT, text(None), "cannot be read: No such file or directory"),
    (LAYOUT, text("{}"), "does not describe a model: run `snakemake -n` to have it made again."),
    (LAYOUT, value("blocks", to="three"), "does not describe a model"),
    (LAYOUT, value("width", to="wide"), "does not describe a model"),
    (FIGURES, text(None), "cannot be read: No such file or directory"),
    (FIGURES, text("{}"), "model is {}; expected: Field required"),
    (FIGURES, value("hardware", to=[]), "hardware is []; expected"),
    (FIGURES, value("data", "documents", to="many"), "data.documents is 'many'; expected: a valid integer"),
    (FIGURES, value("versions", to="x" * 10**6), "(1,000,002 characters); expected"),
    (RECIPE, text("{}"), "matrices is {}; expected: Field required"),
    (RECIPE, value("matrices", 0, "kept_zeros", to=None), "matrices.0.kept_zeros is None; expected"),
]


@pytest.fixture
def results(clone, tmp_path) -> Path:
    """A copy of finished results."""
    return shutil.copytree(clone.folder / "results", tmp_path / "results")


def gramprune(*arguments: object) -> str | None:
    """What the command ends with: a sentence, or nothing where all went well."""
    try:
        run([*map(str, arguments)])
    except SystemExit as end:
        return end.code
    return None


def drawn(folder: Path) -> str:
    """The page, without Vega's library and without its pictures."""
    found = [read(folder)]
    charts = {name: (caption, finite(chart.to_dict())) for name, (caption, chart) in all_charts(found).items()}
    return page(found, charts, "")


@pytest.mark.parametrize("file, damage, sentence", DAMAGED, ids=[f"{case[0]}: {case[2][:30]}" for case in DAMAGED])
def test_a_report_of_damaged_results_says_which_file(results, file, damage, sentence):
    damage(results / file)
    said = gramprune("report", results, "-o", results.parent / "r.html")
    assert said.startswith("gramprune: ") and said.endswith(".") and "\n" not in said and len(said) < 1000
    assert sentence in said and (str(results / file) in said or "holds no results" in said)
    assert not (results.parent / "r.html").exists() and not (results.parent / "r_pictures").exists()
    if file == SUMMARY and "other rows" not in sentence:
        assert gramprune("summary", results) == said


@pytest.mark.slow
def test_whatever_is_wrong_in_a_file_there_is_a_sentence_with_its_name_or_the_page_opens(results):
    """Two hundred values in all kinds of files, each replaced by another kind; a page for eight that are taken."""
    generator = random.Random(0)
    wrong = [None, NASTY, -1, 0, True, 1e308, 10**30, float("nan"), [], {}, [None], {"a": None}]
    logs = ["logs/tiny/calibrate.json", "logs/summary.json"]
    for name in [EXPERIMENT, LAYOUT, FIGURES, RECIPE, *logs]:
        path = results / name
        whole = path.read_text()
        places = list(places_in(json.loads(whole)))
        taken = 0
        for place in generator.sample(places, min(len(places), 40)):
            before = path.read_text()
            with suppress(KeyError, TypeError, IndexError):  # what is around it was replaced
                value(*place, to=generator.choice([..., *wrong]))(path)
            try:
                found = read(results)
                assert found.evaluations and found.times and found.kept_zeros("tiny", "chain") is not None
                taken += 1
            except GrampruneError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                path.write_text(before)  # those that are taken stay, for one page
            if taken == 8:
                drawn(results)
                path.write_text(whole)
                taken = 0
        drawn(results)
        path.write_text(whole)


def places_in(content: object, place: tuple = ()):
    """The keys that lead to every value in a JSON file; of lists, to the first."""
    inside = (
        content.items() if isinstance(content, dict) else [*enumerate(content)][:1] if isinstance(content, list) else ()
    )
    for key, inner in inside:
        yield (*place, key)
        yield from places_in(inner, (*place, key))


@pytest.mark.parametrize("figures", [[None, float("nan"), float("inf")], [0.0, -1.0, 1e308]], ids=str)
def test_figures_that_cannot_be_drawn_leave_the_rest_of_the_page(results, figures):
    for name in ("perplexity_evaluation", "delta_high_evaluation", "tokens_evaluation"):
        column(name, [5.0, *figures, *[7.0] * 3])(results / SUMMARY)
    write_report([results], results.parent / "r.html", results.parent / "pictures")
    assert "<h2 id=provenance>" in (results.parent / "r.html").read_text()
    assert len(list((results.parent / "pictures").glob("*.svg"))) >= 8


def test_a_damaged_record_of_a_job_is_as_if_it_were_not_done(results, clone, monkeypatch):
    monkeypatch.chdir(results.parent)
    for content in ("{}", "[]", "", '{"seconds": "long"}', json.dumps({"seconds": -1})):
        (results / "logs/tiny/calibrate.json").write_text(content)
        found = read(results)
        assert ("calibrate", "tiny") not in found.times and len(found.times) == len(found.jobs) - 1
        assert found.cost_of("tiny", "chain") is None
    assert "<h2 id=provenance>" in drawn(results)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_no_text_of_a_stranger_swallows_a_part_of_the_page(results, tmp_path):
    table = parquet.read_table(results / LAYERS)
    linears = [NASTY + name for name in table.column("linear").to_pylist()]
    column("linear", linears)(results / LAYERS)
    column("mask", [None, *[NASTY] * 6])(results / SUMMARY)
    column("pattern", [None, *[NASTY] * 6])(results / SUMMARY)
    value("model", "source", to=NASTY)(results / FIGURES)
    value("hardware", "cpu", to="</table>" + NASTY)(results / FIGURES)
    value("versions", NASTY, to=NASTY)(results / FIGURES)
    write_report([results], tmp_path / "r.html", tmp_path / "pictures")
    content = (tmp_path / "r.html").read_text()
    note = """onerror = m => document.title = 'FAILED ' + m; console.error = onerror;
    addEventListener('load', () => setTimeout(() => document.title =
      document.title + document.querySelector('#provenance').parentElement.tagName, 5000));"""
    made = opened(content, note, tmp_path)
    title = re.search("<title>(.*?)</title>", made)[1]
    assert "FAILED" not in title and title.endswith("BODY"), title
    assert len(re.findall('class="vega-embed', made)) == content.count("data-chart=chart-")
    assert made.count("</script>") == content.count("</script>") + 1  # and the one that watches


KEPT = [  # what the user has there, arguments, sentence or nothing
    ("r.html", ["-o", "r.html"], "r.html is there already and is no report"),
    ("r/notes.txt", ["-o", "r"], "r is there already and is no report"),
    ("figures/perplexity.svg", ["-o", "new.html", "--pictures", "figures"], "figures/perplexity.svg is in the way"),
    ("figures", ["-o", "new.html", "--pictures", "figures"], "figures could not be written"),
    ("figures/deep/mine.svg", ["-o", "new.html", "--pictures", "figures"], None),
    ("new_pictures/.hidden.png", ["-o", "new.html"], None),
]


@pytest.mark.slow
@pytest.mark.parametrize("mine, arguments, sentence", KEPT, ids=[" ".join([case[0], *case[1]]) for case in KEPT])
def test_a_report_leaves_every_file_of_the_users(clone, tmp_path, monkeypatch, mine, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    Path(mine).parent.mkdir(parents=True, exist_ok=True)
    Path(mine).write_text("mine")
    for _ in range(2):  # the second time over our own
        said = gramprune("report", clone.folder / "results", *arguments)
        assert Path(mine).read_text() == "mine"
        assert (said is None) == (sentence is None), said
        if sentence:
            assert said.startswith("gramprune: ") and sentence in said
        else:
            assert (tmp_path / "new.html").exists() and len(list(tmp_path.rglob("*.svg"))) >= 8


def test_a_link_to_a_folder_of_pictures_stays_one(clone, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    write_report([clone.folder / "results"], tmp_path / "r.html", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere/perplexity.svg").exists()


def test_of_a_folder_only_what_was_put_there_and_is_unchanged_is_replaced(tmp_path):
    folder = tmp_path / "checkpoint"

    def put(**contents: str) -> None:
        with files.atomic_folder(folder) as part:
            for name, content in contents.items():
                (part / name).write_text(content)

    put(config="1", shard="1", last="1")
    (folder / "notes").write_text("mine")
    (folder / "deep").mkdir()
    (folder / "deep/file").write_text("mine")
    put(config="2", last="2")
    assert {path.name for path in folder.iterdir()} == {"config", "last", "notes", "deep", files.MARK}
    assert (folder / "config").read_text() == "2" and (folder / "deep/file").read_text() == "mine"
    (folder / "config").write_text("edited by hand")
    with pytest.raises(GrampruneError) as error:
        put(config="3", last="3")
    assert_sentence(error, folder / "config", "is in the way: gramprune has not made it, or it was changed since")
    assert (folder / "config").read_text() == "edited by hand" and (folder / "last").read_text() == "2"
    with pytest.raises(GrampruneError):
        put(notes="ours", last="3")
    assert (folder / "notes").read_text() == "mine"


def test_a_record_that_names_files_elsewhere_removes_none(tmp_path):
    (tmp_path / "mine").write_text("x")
    folder = tmp_path / "pictures"
    folder.mkdir()
    sign = files._signature(tmp_path / "mine")
    files.write_json(
        folder / files.MARK, {"files": {"../mine": sign, str(tmp_path / "mine"): sign, "..": "", "a": None}}
    )
    with files.atomic_folder(folder) as part:
        (part / "b").write_text("ours")
    assert (tmp_path / "mine").read_text() == "x" and (folder / "b").exists()


def test_the_last_file_is_put_last(tmp_path, monkeypatch):
    """Should the machine die while files take their places, the one that says that they are there is missing."""
    replaced = []
    replace = os.replace

    def dying(source, target):
        replaced.append(Path(target).name)
        if len(replaced) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    with pytest.raises(KeyboardInterrupt), files.atomic_folder(tmp_path / "a", last="done") as part:
        for name in ("done", "x", "y", "z"):
            (part / name).write_text(name)
        monkeypatch.setattr(os, "replace", dying)
    assert not (tmp_path / "a/done").exists() and not list(tmp_path.glob(".*.part"))


@pytest.fixture(scope="module")
def mine(clone, tmp_path_factory) -> Clone:
    """A finished experiment in which a user has put files of their own."""
    made = copied(clone.folder, tmp_path_factory.mktemp("mine"))
    for path in PUT:
        (made.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (made.folder / path).write_text("mine")
    return made


PUT = [
    "results/notes.txt",
    "results/pictures/mine.svg",
    "results/tiny/chain/checkpoint/notes.txt",
    "results/tiny/chain/checkpoint/quantised/model.gguf",
    "results/tiny/chain/block_001/mine.safetensors",
    "results/tiny/chain/block_001/masks/mine.safetensors",
    "results/tiny/chain/block_002/masks/cut-off.safetensors",
]


@pytest.mark.slow
def test_nothing_of_the_users_goes_when_everything_is_made_again(mine, config):
    assert mine.planned() == {}
    path = mine.folder / "results/tiny/chain/checkpoint/model.safetensors.index.json"
    shard = next(path.parent.glob("model-00001-*.safetensors"))
    before = shard.stat().st_ino
    mine.run("-R", "assemble", "report")
    whole = mine.folder / "results/tiny/chain/block_002/masks/other.safetensors"
    save_file({"x": torch.zeros(2)}, whole)
    said = mine.snakemake("tidy").stdout
    assert "tiny/chain: 3 files stay that gramprune has not made, or not whole: " in said and whole.exists()
    assert all((mine.folder / path).read_text() == "mine" for path in PUT)
    assert next(path.parent.glob("model-00001-*.safetensors")).stat().st_ino != before
    assert not (mine.folder / "results/tiny/chain/block_001/weights.safetensors").exists()  # tidy took ours


@pytest.mark.slow
def test_a_file_in_the_way_of_a_checkpoint_stops_its_assembly_and_stays(mine, clone):
    folder = mine.folder / "results/tiny/joint"
    shutil.rmtree(folder / "checkpoint")
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/config.json").write_text("mine")
    target = "results/tiny/joint/checkpoint/gramprune.json"
    assert_one_sentence(mine.snakemake(target), "joint/checkpoint/config.json is in the way: gramprune has not made it")
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["config.json"]
    assert (folder / "checkpoint/config.json").read_text() == "mine"
    (folder / "checkpoint/config.json").unlink()
    mine.run(target)


@pytest.mark.slow
def test_two_checkouts_do_not_write_into_one_folder_of_results(clone, config, tmp_path):
    """Meanwhile the second one can plan, and look how far it is. Once the first one is killed, nobody is in the way."""
    both = str(tmp_path / "both")
    clones = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        clones.append(Clone(tmp_path / name))
    first, second = clones
    for each in clones:
        each.write(changed(config, lambda c: c.update(results=both)))
    target = f"{both}/tiny/model.json"
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = first.start(target, **pipes)
    try:
        lock = Path(both, "logs/.lock")
        while not (lock.exists() and lock.read_text()):
            assert running.poll() is None
        running.send_signal(signal.SIGSTOP)  # it has time
        refused = second.snakemake(target)
        assert_one_sentence(refused, f"{both} is being written by another snakemake (process {running.pid} on ")
        assert f"in {first.folder}" in refused.stderr and "rule fetch" not in refused.stderr.partition("gramprune:")[2]
        second.run("--dry-run")
        second.run("status", "plan")
        assert_one_sentence(second.snakemake("tidy"), "is being written by another snakemake")
    finally:
        running.kill()
        running.wait()
    second.run(target)
    assert not lock.read_text()
