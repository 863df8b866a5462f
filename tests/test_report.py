"""The tables and the report: what they say, in a real browser too."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from conftest import changed
from problems import assert_sentence

from gramprune.errors import GrampruneError
from gramprune.report import answer, chart_runs, results, write_report
from gramprune.report.page import NO_NETWORK
from gramprune.report.read import read

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
RUNS = ["chain", "joint", "plain", "apart", "refined", "aimed"]


@pytest.fixture(scope="module")
def page(clone) -> str:
    return (clone.folder / "results/report.html").read_text()


def measured(losses, length=11):
    tokens = [length - 1] * len(losses)
    total = float(np.dot(losses, tokens) / sum(tokens))
    return {
        "perplexity": float(np.exp(total)),
        "windows": len(losses),
        "length": length,
        "stride": length,
        "predicted_tokens": sum(tokens),
        "tokens_per_window": tokens,
        "loss_per_window": list(losses),
    }


def test_the_interval_of_the_difference_is_that_of_paired_windows():
    generator = np.random.default_rng(3)
    dense = generator.normal(3, 0.5, 200)
    pruned = dense + generator.normal(0.1, 0.02, 200)  # windows differ much, the models on one window little
    change, low, high = results.difference(measured(pruned), measured(dense))
    assert change == pytest.approx(np.exp(pruned.mean()) - np.exp(dense.mean()))
    draws = generator.integers(0, 200, (4000, 200))
    gaps = np.exp(pruned[draws].mean(axis=1)) - np.exp(dense[draws].mean(axis=1))
    assert (low, high) == pytest.approx(tuple(np.quantile(gaps, [0.025, 0.975])), rel=0.05)
    assert low < change < high and results.difference(measured(pruned), measured(dense)) == (change, low, high)


def test_perplexities_over_other_windows_are_not_subtracted():
    with pytest.raises(GrampruneError) as error:
        results.difference(measured([1.0] * 5), measured([1.0] * 5, length=21))
    assert_sentence(error, "5 windows of 11", "of 21", "cannot be compared")


def test_tables_for_papers_hold_the_figures_of_the_summary(clone):
    folder = clone.folder / "results"
    rows = parquet.read_table(folder / "summary.parquet").to_pylist()
    for name, separator in (("summary.md", "|"), ("summary.tex", "&")):
        lines = (folder / name).read_text().replace("\\", "").splitlines()
        for row in rows:
            line = next(line for line in lines if f" {row['run']} " in line)
            assert f"{row['perplexity_evaluation']:.2f}" in [cell.strip() for cell in line.split(separator)]
    for row in rows[1:]:
        assert row["delta_low_evaluation"] <= row["delta_evaluation"] <= row["delta_high_evaluation"]
        assert row["delta_evaluation"] == pytest.approx(row["perplexity_evaluation"] - rows[0]["perplexity_evaluation"])


def test_standard_errors_stand_beside_their_accuracies_and_in_no_column_of_their_own():
    figures = {"acc_a": 0.5, "acc_stderr_a": 0.1, "acc_norm_a": 0.25, "acc_norm_stderr_a": 0.2}
    head, _, line = results.as_text([{"model": "m", "run": "r", **figures}]).splitlines()
    assert head.split() == ["model", "run", "acc_a", "acc_norm_a"] and "50.0 % ± 10.0  25.0 % ± 20.0" in line


def test_the_report_begins_with_the_runs_and_marks_the_best_of_every_pattern(clone, page):
    table = page[page.index("<table") : page.index("</table>")]
    lines = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in re.findall(r"<tr.*?</tr>", table)]
    assert [line[0] for line in lines if line] == ["dense", *RUNS]
    rows = parquet.read_table(clone.folder / "results/summary.parquet").to_pylist()
    halves = [row for row in rows if row["pattern"] == "0.5"]
    best = min(halves, key=lambda row: row["perplexity_evaluation"])["run"]
    marked = [
        re.search(r"<td[^>]*>(.*?)</td>", line)[1] for line in re.findall(r"<tr.*?</tr>", table) if "best" in line
    ]
    assert marked == [best]  # one run alone at 2:4 is not the best of anything


def test_the_report_says_first_which_run_to_take_for_every_pattern(clone, page):
    rows = parquet.read_table(clone.folder / "results/summary.parquet").to_pylist()
    said = re.findall(r"<li><b>(.*?)</b>: (.*?)</li>", page[: page.index("<table")])
    assert {pattern for pattern, _ in said} == {"0.5", "2:4"}
    for pattern, sentence in said:
        best = min((r for r in rows if r["pattern"] == pattern), key=lambda row: row["perplexity_evaluation"])
        assert f"<code>{best['run']}</code>: perplexity {best['perplexity_evaluation']:.2f}" in sentence
        assert f"dense {rows[0]['perplexity_evaluation']:.2f}" in sentence


class Costs:
    """What the rows of a summary know of where they are from, as far as a sentence about them needs it."""

    def __init__(self, hours, rows=()):
        self.hours, self.rows = hours, rows

    def cost_of(self, model, run):
        return {"hours": self.hours[run]} if run in self.hours else None


def test_a_run_is_compared_with_the_dense_model_that_it_was_made_from():
    figures = {"one": (10.0, 12.0), "other": (20.0, 21.0)}
    rows = [
        {"model": model, "run": run, "pattern": pattern, "perplexity_text": value}
        for model, values in figures.items()
        for run, pattern, value in zip(("dense", "wanda"), (None, "0.5"), values, strict=True)
    ]
    said = answer.takes([Costs({}, rows)])
    assert [re.search(r"perplexity (\S+) on text, dense (\S+)\.$", each).groups() for each in said] == [
        ("12.00", "10.00"),
        ("21.00", "20.00"),
    ]


def test_a_cheaper_run_is_named_with_what_it_gives_up_and_saves():
    costs = Costs({"good": 3.0, "fair": 2.5, "cheap": 1.0, "cheapest": 0.5})
    rows = [
        {"model": "m", "run": run, "perplexity_text": value, "_of": costs}
        for run, value in (("cheap", 12.5), ("good", 10.0), ("fair", 11.0), ("cheapest", 20.0))
    ]
    said = answer._taken(rows, ["perplexity_text"], {"perplexity_text": 9.0})
    assert said.startswith("take <code>good</code>: perplexity 10.00 on text, dense 9.00")
    assert said.endswith("<code>cheap</code> is 2.5 above it for 33% of its 3 h") and "fair" not in said


def test_equal_runs_are_all_named_the_cheapest_first_and_a_missing_cost_is_no_reason():
    costs = Costs({"slow": 3.0, "quick": 1.0})
    rows = [{"run": run, "perplexity_text": 10.0, "_of": costs, "model": "m"} for run in ("unknown", "slow", "quick")]
    said = answer._taken(rows, ["perplexity_text"], {"perplexity_text": 9.0})
    assert said.startswith("take <code>quick</code>") and said.endswith(
        "the same: <code>slow</code>, <code>unknown</code>"
    )


def test_no_run_is_recommended_where_all_break_the_model():
    for worst in (2e8, float("inf"), float("nan")):
        rows = [{"run": "only", "perplexity_text": worst, "_of": Costs({}), "model": "m"}]
        said = answer._taken(rows, ["perplexity_text"], {"perplexity_text": 9.0})
        assert said.startswith("no run keeps the model; <code>only</code>") and "take" not in said


def test_a_recipe_is_what_stays_the_same_over_sparsity():
    def record(run, pattern, method="wanda", propagation="dense"):
        head = {"place": "m", "what": "text", "run": run, "method": method, "pattern": pattern}
        return {**head, "granularity": "row", "propagation": propagation}

    runs = [
        record("a", "0.5"),
        record("b", "0.6"),
        record("c", "0.5", "ria", "pruned"),
        record("d", "0.5", "ria"),
        record("e", "0.6; *.down_proj 0.5; block 0 dense", "admm"),
        record("f", "0.6; *.down_proj 0.5; block 0 dense", "admm"),
    ]
    chart_runs.recipes(runs)
    assert [run["recipe"] for run in runs] == [
        "wanda", "wanda", "ria, row, pruned", "ria, row, dense", "admm, row, dense, e", "admm, row, dense, f",
    ]  # fmt: skip


def test_the_front_of_a_pattern_is_of_runs_that_no_other_beats_in_time_and_perplexity():
    runs = [
        {"pattern": pattern, "minutes": minutes, "value": value}
        for pattern, minutes, value in [("0.5", 1, 9), ("0.5", 2, 9), ("0.5", 3, 8), ("0.5", 4, 8.5), ("2:4", 4, 10)]
    ]
    found = [(run["pattern"], run["minutes"], run["first"]) for run in chart_runs.front(runs)]
    assert found == [("0.5", 1, True), ("0.5", 3, False), ("2:4", 4, True)]


def test_names_of_fronts_that_begin_at_one_place_stand_above_each_other():
    runs = [
        {"pattern": pattern, "minutes": minutes, "value": value, "first": True}
        for pattern, minutes, value in [("0.5", 1.0, 20), ("2:4", 1.01, 20.1), ("0.6", 1.02, 20.2), ("0.7", 9.0, 20.1)]
    ]
    far = {"pattern": "0.5", "minutes": 9, "value": 40, "first": False}
    found = {run["pattern"]: run["value"] for run in chart_runs.named([*runs, far], [*runs, far], 500, 280)}
    assert (found["0.5"], found["0.7"]) == (20, 20.1)  # the lowest, and the one that stands alone
    pixels = [280 * np.log(found[pattern] / 20) / np.log(2) for pattern in ("2:4", "0.6")]
    assert pixels == pytest.approx([12, 24])


def test_the_report_says_which_linears_hurt_most_in_the_best_run_of_a_pattern(clone, page):
    rows = parquet.read_table(clone.folder / "results/summary.parquet").to_pylist()
    best = min((r for r in rows if r["pattern"] == "0.5"), key=lambda row: row["perplexity_evaluation"])["run"]
    found = read(clone.folder / "results")
    errors = found.errors_of("tiny", next(run for run in found.settings.runs if run.name == best))
    ranked = sorted(errors, key=lambda row: -row["end"])
    said = re.search(rf"<li><b>0.5</b>, <code>{best}</code>: (.*?)</li>", page)[1]
    assert said.startswith(f"block {ranked[0]['block']} {ranked[0]['linear']} is hurt most")
    half = int(re.search(r"(\d+) of 21 linears make up half", said)[1])
    total = sum(row["end"] for row in errors)
    assert sum(row["end"] for row in ranked[: half - 1]) < total / 2 <= sum(row["end"] for row in ranked[:half])


def test_the_report_says_what_could_make_one_doubt_and_how_to_make_a_figure_again(clone, page):
    health = page[page.index("<h2 id=health>") : page.index("<h2 id=provenance>")]
    assert health.count(">768<") == len(RUNS) and health.count("100.0 %") == 2  # tokens; swaps certified
    provenance = page[page.index("<h2 id=provenance>") :]
    manifest = json.loads((clone.folder / "results/tiny/model.json").read_text())
    for text in (manifest["fingerprint"], "torch ", "12", "snakemake --cores", "mask:\n    method: admm"):
        assert text in provenance
    assert "results/tiny/refined/evaluation/perplexity_evaluation.json" in provenance


def test_the_settings_that_the_report_shows_for_a_run_make_its_figures_again(clone, page):
    """Snakemake finds nothing to do but tables when only this run is left: its jobs are the same."""
    import yaml

    made = page[page.index("<summary>tiny / refined") :]
    config = yaml.safe_load(re.search(r"<pre>(.*?)</pre>", made, re.DOTALL)[1].replace("&#x27;", "'"))
    assert [run["name"] for run in config["runs"]] == ["refined"]
    assert set(clone.planned({**config, "batch_size": 4})) == {("summary", None), ("report", None)}


def test_errors_of_a_run_are_those_of_its_own_stages(clone, config):
    found = read(clone.folder / "results")
    rows = parquet.read_table(clone.folder / "results/layers.parquet").to_pylist()
    run = next(run for run in found.settings.runs if run.name == "refined")
    errors = {(row["block"], row["linear"]): row for row in found.errors_of("tiny", run)}
    assert len(errors) == 21
    for row in rows:
        if row["stage"] == "refine" and row["run"] == ("dense" if row["block"] == 0 else "refined"):
            error = errors[row["block"], row["linear"]]
            assert error["end"] == row["relative_error"]
            assert error["start"] == pytest.approx(row["error_before"] / row["error"] * row["relative_error"])
    cost = found.cost_of("tiny", "refined")
    assert 0 < cost["wall"] <= cost["hours"] * (1 + 1e-12) and cost["gpu"] == 0


@pytest.mark.slow
def test_figures_of_several_folders_that_cannot_be_compared_are_marked(clone, config, tmp_path):
    wider = changed(config, lambda c: c["evaluation"]["perplexity"].update(length=32))
    wider.update(results="wider", runs=[run for run in config["runs"] if run["name"] in ("plain", "apart")])
    clone.run(config=wider)
    folders = [clone.folder / "results", clone.folder / "wider"]
    write_report(folders, tmp_path / "report.html", tmp_path / "pictures")
    page = (tmp_path / "report.html").read_text()
    assert "figures with different letters cannot be compared" in page
    table = page[page.index("<table") : page.index("</table>")]
    assert table.count("ᵃ") == 1 + len(RUNS) and table.count("ᵇ") == 1 + 2
    write_report(folders[:1], tmp_path / "alone.html", tmp_path / "pictures")
    assert "cannot be compared" not in (tmp_path / "alone.html").read_text()


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(GrampruneError) as error:
        write_report([tmp_path], tmp_path / "report.html", tmp_path / "pictures")
    assert_sentence(error, str(tmp_path), "experiment.json", "snakemake")


def opened(page: str, script: str, folder: Path) -> str:
    """What a browser has made of the page once it is loaded, with a script of ours at its beginning."""
    watched = folder / "report.html"
    watched.write_text(page.replace("<title>", f"<script>{script}</script><title>", 1))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder}/profile"]
    options += ["--virtual-time-budget=20000", "--dump-dom"]
    return subprocess.run([BROWSER, *options, watched.as_uri()], capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_draws_every_chart_without_an_error_though_the_page_may_ask_for_nothing(clone, page, tmp_path):
    charts = page.count("data-chart=chart-")
    pictures = sorted(path.stem for path in (clone.folder / "results/pictures").glob("*.svg"))
    assert charts == len(pictures) >= 8
    assert f'content="{NO_NETWORK}"' in page and "connect-src" not in NO_NETWORK and "http" not in NO_NETWORK
    note = """onerror = m => document.title = 'FAILED ' + m; console.error = console.warn = onerror;
    addEventListener('securitypolicyviolation', e => onerror('asked for ' + e.blockedURI));"""
    made = opened(page, note, tmp_path)
    assert "FAILED" not in re.search("<title>(.*?)</title>", made)[1]
    assert len(re.findall(r"<div id=\"chart-\w+\"[^>]*class=\"vega-embed", made)) == charts


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_click_on_a_head_sorts_the_runs_and_another_turns_them_round(clone, page, tmp_path):
    click = """addEventListener('load', () => {
      const table = document.querySelector('table.sortable'), heads = [...table.querySelectorAll('th')];
      document.title = [1, 2].map(() => {
        heads.find(head => head.textContent.startsWith('perplexity')).click();
        return [...table.tBodies[0].rows].map(row => row.cells[0].textContent).join(' ');
      }).join(', ');
    });"""
    orders = re.search("<title>(.*?)</title>", opened(page, click, tmp_path))[1].split(", ")
    rows = parquet.read_table(clone.folder / "results/summary.parquet").to_pylist()
    ranked = [row["run"] for row in sorted(rows[1:], key=lambda row: row["perplexity_evaluation"])]
    assert [order.split() for order in orders] == [["dense", *ranked], ["dense", *ranked[::-1]]]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_column_can_be_hidden(clone, page, tmp_path):
    click = """addEventListener('load', () => {
      const boxes = [...document.querySelectorAll('.columns input')], table = document.querySelector('table.sortable');
      boxes.find(box => box.parentElement.textContent.trim() === 'propagation').click();
      document.title = [...table.tHead.rows[0].cells].filter(c => c.offsetWidth).map(c => c.textContent).join(',');
    });"""
    shown = re.search("<title>(.*?)</title>", opened(page, click, tmp_path))[1].split(",")
    assert "method" in shown and "sparsity" in shown and "propagation" not in shown
