"""Configurations as people really write them, wrong: one sentence each that names the setting, or file and line."""

import copy
import json
import shutil
from datetime import date
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Clone, save_llama
from problems import assert_sentence
from test_errors import assert_one_sentence

from gramprune.errors import GrampruneError
from gramprune.experiment import checks, configfile, outputs, settings

GOOD = {
    "model": "demo",
    "calibration": {"dataset": "demo", "samples": 4, "length": 64},
    "evaluation": {"perplexity": {"datasets": ["demo_heldout"], "length": 64}},
    "runs": [{"name": "a", "sparsity": 0.5, "mask": "wanda"}],
}
PERPLEXITY = ("evaluation", "perplexity")
RUN = ("runs", 0)
NO_NAME = "expected: letters without accents, digits, `.`, `_` and `-`"
IN_QUOTES = "expected: text; put it in quotes."
WRONG = [
    # sections that are empty, lists, or text
    (("calibration",), None, "calibration is empty; expected: a mapping with keys."),
    (("calibration",), [], "calibration is []; expected: a mapping with keys."),
    (("evaluation",), "wikitext", "evaluation is 'wikitext'; expected: a mapping"),
    (PERPLEXITY, None, "evaluation.perplexity is empty; expected: a mapping"),
    ((*PERPLEXITY, "datasets"), "demo_heldout", "datasets is 'demo_heldout'; expected: a list."),
    ((*PERPLEXITY, "datasets"), [], "datasets is []; expected: one entry at least."),
    ((*PERPLEXITY, "datasets"), [None], "datasets[0] is empty; expected: a mapping"),
    ((*PERPLEXITY, "datasets"), ["demo_heldout"] * 2, "two have the name 'demo_heldout'; name each once."),
    ((*PERPLEXITY, "stride"), 128, "stride is 128, more than the length 64"),
    (("evaluation", "tasks"), "arc_easy", "evaluation.tasks is 'arc_easy'; expected: a list."),
    (("evaluation", "tasks"), [{"tasks": []}], "evaluation.tasks[0].tasks is []; expected: one entry"),
    (("evaluation", "tasks"), ["arc_easy", "arc_easy"], "two have the name 'arc_easy'; give each a `name`"),
    (("evaluation", "tasks"), [{"tasks": ["a"], "shots": -1}], "tasks[0].shots is -1; expected: greater than or equal"),
    (("datasets",), [], "datasets is []; expected: a mapping"),
    (("datasets",), {"x": "a.txt"}, "datasets.x is 'a.txt'; expected: a mapping"),
    (("datasets",), {1: {"path": "a.txt"}}, "datasets[1] is 1; " + IN_QUOTES),
    (("runs",), None, "runs is empty; expected: a list."),
    (("runs",), {"name": "a"}, "runs is {'name': 'a'}; expected: a list."),
    (("runs",), ["wanda"], "runs[0] is 'wanda'; expected: a mapping"),
    ((*RUN, "mask"), [["wanda"]], "runs[0].mask is ['wanda']; expected: a method's name, or a mapping with `method`."),
    ((*RUN, "update"), False, "runs[0].update is False; expected: a method's name"),  # `no`, without quotes
    (("exclude",), "*.o_proj", "exclude is '*.o_proj'; expected: a list."),
    # names
    (("model",), {"source": "demo", "name": ".."}, f"model[0].name is '..'; {NO_NAME}"),
    (("model",), {"source": "demo", "name": "a/b"}, f"model[0].name is 'a/b'; {NO_NAME}"),
    (("model",), {"source": "demo", "name": "a."}, f"model[0].name is 'a.'; {NO_NAME}"),
    (("model",), {"source": "demo", "name": "modèle"}, f"model[0].name is 'modèle'; {NO_NAME}"),
    (("model",), {"source": "demo", "name": "x" * 300}, "(302 characters); expected: a shorter text."),
    (("model",), {"source": "demo", "name": "Report.HTML"}, "the name 'Report.HTML' is a file or folder of ours"),
    (("model",), ["demo", {"source": "demo", "name": "Demo"}], "'demo' and 'Demo' are one name on some file systems"),
    ((*RUN, "name"), 50, "runs[0].name is 50; " + IN_QUOTES),
    ((*RUN, "name"), date(2026, 11, 25), "runs[0].name is datetime.date(2026, 11, 25); " + IN_QUOTES),
    ((*RUN, "name"), "dense", "the name 'dense' is a file or folder of ours"),
    (("datasets",), {"C4": {"path": "a"}, "c4": {"path": "b"}}, "'C4' and 'c4' are one name on some file systems"),
    (("datasets",), {"demo": {"path": "a"}}, "the name 'demo' is an embedded dataset"),
    # numbers
    (("calibration", "samples"), 4.5, "calibration.samples is 4.5; expected: a whole number."),
    (("calibration", "samples"), "4.5", "calibration.samples is 4.5; expected: a whole number."),
    (("calibration", "samples"), True, "calibration.samples: True is not a number."),
    (("calibration", "samples"), "many", "calibration.samples is 'many'; expected: a whole number."),
    (("calibration", "samples"), "0", "calibration.samples is 0; expected: greater than 0."),
    (("calibration", "seed"), None, "calibration.seed is empty; expected: a whole number."),
    ((*PERPLEXITY, "length"), "1", "evaluation.perplexity.length is 1; expected: greater than 1."),
    (("threads",), "two", "threads: expected `auto` or a whole number above 0; found 'two'."),
    ((*RUN, "mask"), {"method": "ria", "power": True}, "runs[0].mask.power: True is not a number."),
    ((*RUN, "mask"), {"method": "ria", "power": "much"}, "runs[0].mask.power is 'much'; expected: a number."),
    ((*RUN, "mask"), {"method": "ria", "power": "inf"}, "runs[0].mask.power is inf; expected: a finite number."),
    # sparsity
    ((*RUN, "sparsity"), 124, "runs[0].sparsity: put 2:4 in quotes"),  # as YAML 1.1 reads 2:4
    ((*RUN, "sparsity"), 248, "put 4:8 in quotes"),
    ((*RUN, "sparsity"), 64, "put 1:4 in quotes"),
    ((*RUN, "sparsity"), 992, "put 16:32 in quotes"),
    ((*RUN, "sparsity"), 50, "sparsity 50 is not a fraction of zeros"),
    ((*RUN, "sparsity"), True, "sparsity True is not a fraction"),
    ((*RUN, "sparsity"), None, "sparsity None is not a fraction"),
    ((*RUN, "sparsity"), 10**400, "is not a fraction of zeros strictly between"),
    ((*RUN, "sparsity"), float("nan"), "sparsity nan is not a fraction"),
    ((*RUN, "sparsity"), "4:2", "sparsity '4:2' is not N:M with 0 < N < M"),
    (RUN, {"sparsity": "2:4", "granularity": "matrix", "mask": "wanda"}, "granularity 'matrix' says where a fraction"),
    # words
    (("resluts",), "x", "there is no setting 'resluts'; did you mean 'results'?"),
    (("__use_yte__",), True, "there is no setting '__use_yte__'"),
    ((1,), "x", "expected: names, not numbers or the like, as keys."),
    (("dtype",), "fp16", "dtype is 'fp16'; did you mean 'float16'?"),
    (("keep",), False, "keep is False; did you mean"),
    (("device",), "gpu", "device is 'gpu'; expected: auto, cpu, cuda, or one GPU"),
    ((*RUN, "granularity"), "column", "runs[0].granularity is 'column'; Known: matrix, row."),
    ((*RUN, "mask"), {"method": None}, "runs[0].mask: there is no method 'None'"),
    (("model",), {"source": "demo", "revison": "main"}, "there is no setting 'revison'; did you mean 'revision'?"),
    # paths
    (("model",), "", "model[0].source: '' is no path"),
    (("model",), "models/a\x00b", "'models/a\\x00b' is no path"),
    (("model",), "/" + "x" * 300, "has a part of more than 255 bytes"),
    (("model",), "~nobody-here/llama", "there is no home folder '~nobody-here'"),
    (("datasets",), {"x": {"path": [3]}}, "datasets.x.path is [3]; expected: text."),
    (("evaluation", "tasks"), [{"tasks": ["a"], "include_path": ""}], "tasks[0].include_path: '' is no path"),
    (("results",), None, "results is empty; expected: text."),  # `~` without quotes
    (("results",), 5, "results is 5; " + IN_QUOTES),
    (("results",), "", "results: '' is no path"),
    (("results",), "a\nb", "results: 'a\\nb' is no path"),
]


def with_value(place: tuple, value: object) -> dict:
    config = copy.deepcopy(GOOD)
    inside = config
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return config


def test_what_is_varied_here_is_good():
    settings.load(GOOD)


@pytest.mark.parametrize("place, value, sentence", WRONG, ids=lambda part: str(part)[:40])
def test_a_wrong_setting_is_named_in_one_sentence(place, value, sentence):
    with pytest.raises(GrampruneError) as error:
        settings.load(with_value(place, value))
    assert_sentence(error, "config: ", sentence)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("place", [("model",), ("runs",), ("calibration", "dataset"), (*RUN, "sparsity")], ids=str)
def test_a_misspelt_key_is_one_mistake_and_not_a_missing_one_too(place):
    config = with_value((*place[:-1], f"{place[-1]}x"), "demo")
    inside = config
    for part in place[:-1]:
        inside = inside[part]
    del inside[place[-1]]
    with pytest.raises(GrampruneError) as error:
        settings.load(config, everything=True)
    assert_sentence(error, f"there is no setting '{place[-1]}x'; did you mean {place[-1]!r}?")


@pytest.mark.parametrize("config", [None, [], "demo"], ids=repr)
def test_a_configuration_that_is_no_mapping_is_refused(config):
    with pytest.raises(GrampruneError) as error:
        settings.load(config)
    assert_sentence(error, "expected: a mapping with keys")


def test_numbers_that_come_as_text_are_taken():
    config = with_value((*RUN, "mask"), {"method": "ria", "power": "1e-3"})
    config["calibration"].update(samples="4", seed="007")
    config["batch_size"] = "16"
    found = settings.load(config)
    assert (found.calibration.samples, found.calibration.seed, found.batch_size) == (4, 7, 16)
    assert found.runs[0].mask.power == 0.001
    numbers = with_value((*RUN, "mask"), {"method": "ria", "power": 0.001})
    numbers["calibration"]["seed"], numbers["batch_size"] = 7, 16
    assert found == settings.load(numbers)


def test_a_home_folder_is_meant_by_its_sign_wherever_a_path_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/home/you")
    config = with_value(("results",), "~/results/")
    config |= {"model": "~/models/a", "datasets": {"x": {"path": "~/x.txt"}}}
    config["evaluation"]["tasks"] = [{"tasks": ["a"], "include_path": "~/tasks"}]
    found = settings.load(config)
    assert found.results == "/home/you/results"
    assert [*found.inputs.values()] == [f"/home/you/{name}" for name in ("models/a", "x.txt", "tasks")]


@pytest.mark.parametrize("source", [".", "..", "模型", "./a/données 模型", "x" * 200, "./{x}"])
def test_a_model_has_a_name_whatever_its_folder_is_called(source):
    name = settings.load(with_value(("model",), source)).model[0].name
    assert 0 < len(name) <= 100 and name.isascii()


def test_no_name_of_a_model_or_run_is_that_of_a_file_of_ours(clone):
    """What lies in the results of a whole experiment beside its models and runs, and in the logs, is taken."""
    folder = clone.folder / "results"
    beside = {path.name for place in (folder, folder / "logs") for path in place.iterdir()}
    inside = {path.name for place in (folder / "tiny", folder / "logs/tiny") for path in place.iterdir()}
    runs = {path.name for path in (folder / "tiny").iterdir() if (path / "checkpoint").exists()}
    assert {name for name in beside if name[0] != "."} <= outputs.taken()["model"] | {"tiny"}
    assert inside <= outputs.taken()["run"] | runs
    for name in beside - {"tiny"}:
        with pytest.raises(GrampruneError):
            settings.load(with_value(("model",), {"source": "demo", "name": name}))
    for name in inside - runs:
        with pytest.raises(GrampruneError):
            settings.load(with_value((*RUN, "name"), name))


GOOD_TEXT = yaml.safe_dump(GOOD, sort_keys=False)
NEXT = GOOD_TEXT.count("\n") + 1  # the line behind it
REFERS_TO_ITSELF = "model: &a [*a]\n"
BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 10)}]\n" for n in range(12))
BROKEN = [
    (GOOD_TEXT + "model: other\n", NEXT, "'model' is given twice, first in line 1; keep one."),
    (GOOD_TEXT.replace("samples: 4", "samples: 4\n  samples: 8"), 5, "'samples' is given twice, first in line 4"),
    (json.dumps(GOOD, indent="\t").replace('"model"', '"model": "a",\n\t"model"'), 3, "'model' is given twice"),
    (GOOD_TEXT.replace("  samples: 4", "\tsamples: 4"), 4, "a tab stands here; YAML is indented with spaces."),
    (GOOD_TEXT.replace("calibration:", "calibration"), 3, "a colon"),
    (GOOD_TEXT.replace("model: demo", "model demo"), 2, "a colon is missing in the line before"),
    (GOOD_TEXT.replace("samples: 4", "samples: 4: 5"), 4, "or a text with a colon wants quotes"),
    (GOOD_TEXT + "exclude: [a, b\n", NEXT + 1, f"a closing bracket is missing behind what begins in line {NEXT}."),
    (GOOD_TEXT + "exclude: ['a]\n", NEXT + 1, "found unexpected end of stream"),
    (GOOD_TEXT.replace("  samples: 4", "    samples: 4"), 4, "this is not valid YAML"),
    (GOOD_TEXT + "exclude: *x\n", NEXT, "found undefined alias"),
    (GOOD_TEXT + "exclude: @x\n", NEXT, "this is not valid YAML"),
    (GOOD_TEXT + "---\nmodel: other\n", NEXT, "but found another document"),
    (GOOD_TEXT + "keep: !!python/object/apply:os.system [exit]\n", NEXT, "tags such as `!!python` are not read here"),
    (GOOD_TEXT + "keep: a\0b\n", NEXT, "a control character stands here"),
    (GOOD_TEXT + "? [a]\n: b\n", NEXT, "a list or mapping stands in place of a name"),
    (GOOD_TEXT.replace("0.5", "2:4"), 13, 'put 2:4 in quotes, "2:4": without them YAML counts in sixties.'),
    (GOOD_TEXT.replace("0.5", "16:32"), 13, 'put 16:32 in quotes, "16:32"'),
    (json.dumps(GOOD, indent=1).replace("0.5", "2:4"), 19, "put 2:4 in quotes"),
    (REFERS_TO_ITSELF, 1, "what begins here refers to itself."),
    (GOOD_TEXT.replace("demo_heldout", "donn\udce9es"), 9, "this is not UTF-8; save the file in that encoding."),
    ("", None, "holds no settings; expected lines such as `model: demo`."),
    ("# nothing\n", None, "holds no settings"),
    ("- model: demo\n", None, "holds no settings"),
    ("demo\n", None, "holds no settings"),
    (BOMB, None, "with what it repeats it has"),
    ("[" * 3000, None, "is not valid YAML: maximum recursion depth"),
    (GOOD_TEXT + "keep: 2026-99-99\n", None, "is not valid YAML: month must be in 1..12."),
    ("__use_yte__: true\n" + GOOD_TEXT, None, "with `__use_yte__` Snakemake runs Python"),
    ("a: &a {__use_yte__: true}\n<<: *a\n" + GOOD_TEXT, None, "with `__use_yte__` Snakemake runs Python"),
]


@pytest.mark.parametrize("text, line, sentence", BROKEN, ids=[part[2][:40] for part in BROKEN])
def test_a_broken_file_is_refused_with_its_line(tmp_path, text, line, sentence):
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(GrampruneError) as error:
        configfile.read(path)
    assert_sentence(error, f"{path}, line {line}: " if line else path, sentence)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(GrampruneError) as error:
        configfile.read(tmp_path / name)
    assert_sentence(error, tmp_path / name, "cannot be read", "name a file of settings")


@pytest.mark.parametrize(
    "text",
    [
        GOOD_TEXT,
        "\ufeff" + GOOD_TEXT,
        GOOD_TEXT.replace("\n", "\r\n"),
        json.dumps(GOOD),
        json.dumps(GOOD, indent="\t"),
        GOOD_TEXT.replace("- name: a", "- &first\n  name: a") + "- {<<: *first, name: b}\n",
        GOOD_TEXT.replace("0.5", "'2:4'"),
    ],
    ids=["YAML", "byte order mark", "Windows", "JSON", "JSON with tabs", "references", "2:4 in quotes"],
)
def test_good_files_are_read_as_yaml_reads_them(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode())
    found = configfile.read(path)
    assert found == yaml.safe_load(text.replace("\t", " "))
    settings.load(found)


@pytest.mark.parametrize("path", [ROOT / "config.yaml", *sorted((ROOT / "examples").glob("*.yaml"))], ids=str)
def test_files_that_we_ship_are_read(path):
    assert configfile.read(path) == yaml.safe_load(path.read_text())


def made(*paths: str) -> None:
    """Files of the user's, in the folder where snakemake would be typed."""
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("mine")


MODEL = {"model": "./models/llama"}
CONFIG = "models/llama/config.json"
TEXT = {"datasets": {"x": {"path": "data/x.txt"}}}
TASKS = {"evaluation": {**GOOD["evaluation"], "tasks": [{"tasks": ["a"], "include_path": "tasks"}]}}
OVER = [  # files of the user's, settings, sentence
    ([], {"results": "/"}, "results: / is the root of the file system; choose a folder in it."),
    ([], {"results": "~"}, "is your home folder; choose a folder in it."),
    ([], {"results": "$SCRATCH/x"}, "results: $SCRATCH in '$SCRATCH/x' stays as it is: variables are not read here"),
    ([], {"model": "$HOME/llama"}, "model llama: $HOME in '$HOME/llama' stays as it is"),
    ([], {"datasets": {"x": {"path": "${DATA}/x.txt"}}}, "datasets.x.path: ${DATA} in '${DATA}/x.txt' stays"),
    (["results"], {}, "results: results is not a folder; choose another place."),
    (["a"], {"results": "a/b/c"}, "is not a folder; choose another place."),
    (
        ["models/llama/config.json"],
        {**MODEL, "results": "models/llama/results"},
        "lies in ./models/llama (model llama)",
    ),
    ([CONFIG], {**MODEL, "results": "models/llama"}, "lies in ./models/llama (model llama)"),
    (
        ["models/llama/config.json"],
        {**MODEL, "results": "models"},
        "would be written over ./models/llama (model llama)",
    ),
    (["data/x.txt"], {**TEXT, "results": "."}, "would be written over data/x.txt (datasets.x.path)"),
    (["tasks/a.yaml"], {**TASKS, "results": "tasks/results"}, "lies in tasks (evaluation.tasks[0].include_path)"),
    (["experiment.json"], {"results": "."}, "would be written over experiment.json (the configuration)"),
    (["pictures/me.png"], {"results": "."}, "pictures is in the way: gramprune has not made it"),
    (["report.html"], {"results": "."}, "report.html is in the way"),
    (["here/summary.csv"], {"results": "here"}, "here/summary.csv is in the way"),
    (["here/demo/notes.txt"], {"results": "here"}, "here/demo is in the way"),
    (
        ["here/.gramprune", "here/demo/notes.txt"],
        {"results": "here"},
        "here/demo is in the way: gramprune has",
    ),
]


@pytest.mark.parametrize("paths, changes, sentence", OVER, ids=[part[2][:40] for part in OVER])
def test_results_are_never_written_over_what_is_the_users(tmp_path, monkeypatch, paths, changes, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made("home/notes.txt", *paths)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(GrampruneError) as error:
        checks.check_results(settings.load({**GOOD, **changes}), [path for path in paths if path == "experiment.json"])
    assert_sentence(error, sentence)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("mine", ["notes.txt", "other/report.html", ".git/config"])
def test_results_may_lie_beside_what_is_the_users(tmp_path, monkeypatch, mine):
    monkeypatch.chdir(tmp_path)
    made(mine)
    chosen = settings.load({**GOOD, "results": "."})
    checks.check_results(chosen)
    (tmp_path / "report.html").write_text("ours, now that the folder is marked")
    checks.check_results(chosen)
    assert (tmp_path / mine).read_text() == "mine"


def test_results_that_were_copied_without_their_mark_are_ours(clone, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clone.folder / "results", tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    checks.check_results(settings.load({**config, "results": "copy"}))
    assert (tmp_path / "copy/.gramprune").exists()


def test_a_pattern_that_prunes_nothing_or_all_of_a_matrix_is_refused_at_planning(clone, config, monkeypatch):
    monkeypatch.chdir(clone.folder)
    for sparsity, granularity, sentence in [
        (0.01, "row", "sparsity 0.01 prunes none of the 32 weights of a row"),
        (0.999, "row", "sparsity 0.999 prunes all of the 32 weights of a row"),
        (1e-9, "matrix", "sparsity 1e-09 prunes none of the 1,024 weights of the matrix"),
        (0.999999, "matrix", "sparsity 0.999999 prunes all of the 1,024 weights of the matrix"),
    ]:
        run = {"sparsity": sparsity, "granularity": granularity, "mask": "wanda", "name": "plain"}
        with pytest.raises(GrampruneError) as error:
            checks.check({**config, "runs": [run]})
        assert_sentence(error, "config: run 'plain': in the model tiny, block 0, self_attn.q_proj", sentence)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Clone:
    """A clone in which nothing has run."""
    return Clone(tmp_path_factory.mktemp("fresh"))


@pytest.mark.parametrize("how", ["config.yaml", "--configfile"])
@pytest.mark.parametrize(
    "text, line, sentence",
    [BROKEN[0], BROKEN[3], BROKEN[4], BROKEN[16], BROKEN[20], BROKEN[21], BROKEN[28]],
    ids=["twice", "tab", "colon", "2:4", "latin", "empty", "yte"],
)
def test_snakemake_says_what_is_wrong_with_a_file_and_runs_nothing_in_it(fresh, how, text, line, sentence):
    path = fresh.folder / ("config.yaml" if how == "config.yaml" else "other.yaml")
    text = text.replace("__use_yte__: true\n", "__use_yte__: true\nx: ?open('RUN', 'w').close()\n")
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    done = fresh.snakemake("--dry-run", *([] if how == "config.yaml" else [how, "other.yaml"]))
    assert_one_sentence(done, f"{path.name}, line {line}: " if line else path.name)
    assert sentence in done.stderr and not (fresh.folder / "RUN").exists()


@pytest.mark.parametrize("how", ["plain", "local"])
def test_snakemakes_own_errors_are_heard_with_the_terse_profile_too(clone, how):
    profile = () if how == "plain" else ("--profile", "local")
    misspelt = clone.snakemake("results/repotr.html", *profile)
    assert misspelt.returncode and "No rule to produce results/repotr.html" in misspelt.stderr
    behind = clone.snakemake(*profile, "--configfile", "config.yaml", "plan")
    assert_one_sentence(behind, "plan cannot be read: No such file or directory")
    assert "If it is a target, name it before --configfile." in behind.stderr


def test_the_terse_profile_says_a_line_per_job_and_all_of_a_dry_run(clone):
    terse = ("--profile", "local", "--cores", "1", "-R", "summary")
    done = clone.snakemake(*terse)
    assert done.returncode == 0, done.stderr
    said = [line.partition(":")[0] for line in done.stderr.splitlines() if not line.startswith("Using profile")]
    assert said == ["summary", "report"]
    dry = clone.snakemake(*terse, "--dry-run").stdout
    assert "Job stats:" in dry and "rule summary:" in dry and "reason: Forced execution" in dry


def test_numbers_on_the_command_line_are_numbers(clone, config):
    calibration = json.dumps({**config["calibration"], "samples": 12}).replace('"', "")
    same = clone.snakemake("--dry-run", "--config", f"calibration={calibration}")
    assert same.returncode == 0 and "Nothing to be done" in same.stdout, same.stderr
    refused = clone.snakemake("--dry-run", "--config", f"calibration={calibration.replace('12', '12.5')}")
    assert_one_sentence(refused, "config: calibration.samples is 12.5; expected: a whole number.")


@pytest.mark.slow
def test_every_path_may_have_braces_and_any_characters(tokenizer, config, texts, tmp_path):
    strange = tmp_path / "my {x} données <results> 模型"
    save_llama(strange / "{model}", seed=0, num_hidden_layers=1)
    tokenizer.save_pretrained(strange / "{model}")
    places = {name: strange / f"{name} {{{name}}}{path.suffix}" for name, path in texts.items()}
    for name, path in texts.items():
        shutil.copy(path, places[name])
    shutil.copytree(ROOT / "workflow/tasks", strange / "{tasks}")
    definition, items = strange / "{tasks}/demo_cloze.yaml", json.dumps(str(strange / "{tasks}/demo_cloze.jsonl"))
    definition.write_text(definition.read_text().replace("workflow/tasks/demo_cloze.jsonl", items))
    tasks = [{"tasks": ["demo_cloze"], "include_path": str(definition.parent), "limit": 4}]
    (tmp_path / "clone").mkdir()
    clone = Clone(tmp_path / "clone")
    clone.write(
        {
            **config,
            "model": str(strange / "{model}"),
            "datasets": {name: {"path": str(path)} for name, path in places.items()},
            "evaluation": {**config["evaluation"], "tasks": tasks},
            "runs": [run for run in config["runs"] if run["name"] == "apart"],
            "results": str(strange / "{results}"),
        }
    )
    clone.run()
    for name in ("report.html", "pictures/perplexity.svg", "model-/apart/checkpoint/gramprune.json"):
        assert (strange / "{results}" / name).exists()
    assert not clone.planned()
    for path in (places["calibration"], definition):
        path.write_text(path.read_text() + "\n")
    assert {"fetch_data", "fetch_tasks"} <= {rule for rule, _ in clone.planned()}
    clone.run("plan", "status", "tidy")
