"""Runs with an allocation: what is said of them while planning, what they share, and the zeros of real ones."""

import json

import pyarrow.parquet as parquet
import pytest
import torch
from conftest import changed, copied
from problems import assert_sentence
from test_patterns import BASE, LINEARS, load, weights_of

from gramprune import GrampruneError
from gramprune.experiment import allocations, checks, pipeline, settings
from gramprune.stages.allocated import allocated
from gramprune.storage import artifacts

MIXED = {"default": 0.6, "*.down_proj": "2:4", "block 0 self_attn.*": "dense"}


def test_an_allocation_is_in_the_names_of_masks_and_uniform_changes_no_name_and_no_setting():
    plain, uniform = (load(sparsity=0.6, mask="wanda", **more) for more in ({}, {"allocation": "uniform"}))
    assert plain == uniform and plain.mask_slug == "wanda_0.6_row"
    assert "allocation" not in plain.mask_settings and "allocation" not in plain.described
    by_dlp = load(sparsity=0.6, mask="wanda", allocation="dlp")
    assert by_dlp.mask_slug == by_dlp.at(1, 3, LINEARS).mask_slug == "wanda_0.6_row_dlp_0.6_row"
    others = [
        {"method": "dlp", "alpha": 0.2},
        "error",
        {"method": "file", "path": "a"},
        {"method": "file", "path": "b"},
    ]
    slugs = [load(sparsity=0.6, mask="wanda", allocation=each).mask_slug for each in others]
    assert len({*slugs, plain.mask_slug, by_dlp.mask_slug}) == 6


def test_blocks_share_a_mask_only_with_runs_that_have_the_same_allocation():
    """A block of fractions depends on those of all others, where these are allocated together."""
    first = load(sparsity={"default": 0.6, "block 0": 0.5}, mask="wanda", allocation="dlp")
    second = load(sparsity={"default": 0.6, "block 0": 0.4}, mask="wanda", allocation="dlp")
    third = load(sparsity={"block 0": 0.5, "default": 0.6}, mask="wanda", update="admm", allocation="dlp", name="x")
    blocks = [run.at(2, 3, LINEARS) for run in (first, second, third)]
    assert blocks[0].mask_slug == blocks[2].mask_slug != blocks[1].mask_slug
    assert blocks[0].allocation_slug == first.allocation_slug == third.allocation_slug != second.allocation_slug


def test_a_sweep_leaves_out_allocations_of_groups_and_names_say_which_it_is():
    swept = {"recipe": "wanda", "sparsity": [0.6, "2:4"], "allocation": ["uniform", "dlp"]}
    names = [run.name for run in settings.load({**BASE, "runs": [swept]}).runs]
    assert names == ["wanda-0.6-by-uniform", "wanda-0.6-by-dlp", "wanda-2of4-by-uniform"]


def test_an_allocation_takes_the_place_of_fractions_only(tmp_path):
    (tmp_path / "allocation.json").write_text(
        json.dumps({"stage": "allocate", "model": "m", "blocks": [{}, {"a": 0.25, "experts.1": 0.75}]})
    )
    path = tmp_path / "allocation.json"
    given = {"pattern": {"a": 0.5, "b": "2:4", "c": "dense", "experts": 0.5}, "granularity": "row"}
    assert allocated(given, None, "m", 1) is given
    assert allocated(given, path, "m", 1)["pattern"] == {**given["pattern"], "a": 0.25, "experts.1": 0.75}
    assert allocated({"pattern": 0.5}, path, "m", 1)["pattern"] == {"a": 0.25, "experts.1": 0.75}
    assert allocated({"pattern": "dense"}, path, "m", 0)["pattern"] == "dense"
    for model, block in (("other", 1), ("m", 2)):
        with pytest.raises(GrampruneError) as error:
            allocated(given, path, model, block)
        assert_sentence(error, path, f"block {block}", "delete it")


def test_a_file_gives_fractions_by_the_keys_of_a_mapping(tmp_path):
    (tmp_path / "given.yaml").write_text("block 0: 0.3\nblock -1 *.q_proj: 0.9\n'*.up_proj': 0.4\n")
    blocks = [dict.fromkeys(LINEARS, 0.6)] * 3
    blocks[1] = {"mlp.up_proj": 0.6}
    assert allocations.from_file(tmp_path / "given.yaml", blocks) == [
        dict.fromkeys(LINEARS, 0.3),
        {"mlp.up_proj": 0.4},
        dict(zip(LINEARS, (0.9, 0.4, 0.6), strict=True)),
    ]


@pytest.mark.parametrize(
    "content, words",
    [
        ("[0.5]", ("holds no settings",)),
        ("{}", ("gives no fraction", "`block 0: 0.5`")),
        ("block 0: dense", ("block 0 is 'dense'", "fraction between 0 and 1")),
        ("default: '2:4'", ("default is '2:4'", "`sparsity`")),
        ("block 0: 1.5", ("1.5",)),
        ("block 9: 0.5", ("'block 9'", "blocks 0 to 3")),
        ("'*.dwn_proj': 0.5", ("'*.dwn_proj'", "down_proj")),
        ("{'mlp.*': 0.5, '*.up_proj': 0.4}", ("'mlp.*'", "'*.up_proj'", "nearer")),
        ("default: 0.001", ("prunes none", "0.001")),
    ],
)
def test_a_file_that_gives_no_fractions_is_refused_in_a_sentence(content, words, tmp_path):
    (tmp_path / "given.yaml").write_text(content)
    run = {"mask": "wanda", "sparsity": 0.5, "allocation": {"method": "file", "path": str(tmp_path / "given.yaml")}}
    with pytest.raises(GrampruneError) as caught:
        checks.check({**BASE, "results": str(tmp_path / "new"), "runs": [run]})
    assert_sentence(caught, "config: run 'wanda-0.5': allocation", *words)


@pytest.mark.parametrize(
    "run, words",
    [
        ({"sparsity": "2:4", "allocation": "dlp"}, ("runs[0]", "'dlp'", "'2:4'", "uniform")),
        ({"sparsity": {"default": "2:4", "block 0": "dense"}, "allocation": "error"}, ("'error'", "2:4")),
        ({"sparsity": 0.5, "allocation": "dpl"}, ("no method 'dpl'", "did you mean 'dlp'?")),
        ({"sparsity": 0.5, "allocation": {"method": "dlp", "alpha": 0}}, ("runs[0].allocation.alpha is 0",)),
        ({"sparsity": 0.5, "allocation": {"method": "file"}}, ("runs[0].allocation.path is missing",)),
        (
            {"sparsity": 0.5, "allocation": {"method": "file", "path": "not/there.yaml"}},
            ("not/there.yaml", "cannot be"),
        ),
    ],
)
def test_an_allocation_that_cannot_be_is_refused_in_a_sentence(run, words, tmp_path):
    with pytest.raises(GrampruneError) as caught:
        checks.check({**BASE, "results": str(tmp_path / "new"), "runs": [{"mask": "wanda", **run}]})
    assert_sentence(caught, "config: ", *words)


def fractions(path) -> list[dict[str, float]]:
    return json.loads(path.read_text())["blocks"]


@pytest.mark.slow
def test_runs_have_the_zeros_of_their_allocation_which_they_share_and_rerun_when_its_file_changes(
    clone, config, tmp_path, monkeypatch
):
    given = tmp_path / "given.yaml"
    given.write_text("block 0: 0.25\nblock 2: 0.75\n")
    chosen = {"method": "file", "path": str(given)}
    runs = [
        {"name": "wanda", "sparsity": 0.5, "mask": "wanda", "refine": "sparseswaps", "allocation": "dlp"},
        {"name": "admm", "sparsity": 0.5, "mask": "admm", "update": "joint", "allocation": "dlp"},
        {"name": "error", "recipe": "best", "sparsity": MIXED, "allocation": "error"},
        {"name": "chosen", "sparsity": MIXED, "mask": "wanda", "update": "admm", "allocation": chosen},
    ]
    clone = copied(clone.folder, tmp_path)
    more = changed(config, lambda c: c["runs"].extend(runs))
    planned = clone.planned(more)
    assert planned["allocate", None] == 3 and planned["capture", "dense"] == 0
    clone.run(config=more)
    elsewhere = changed(more, lambda c: c.update(results="elsewhere", runs=runs))
    monkeypatch.chdir(clone.folder)
    found = pipeline.jobs(*checks.check(elsewhere))
    planned = clone.planned(elsewhere)
    for stage in ("capture", "allocate", "mask", "refine", "update", "assemble"):
        expected = sum(count for (rule, _), count in planned.items() if rule == stage)
        assert sum(key[0] == stage for key in found) == expected, stage

    results = clone.folder / "results/tiny"
    files = {path.name.partition("_")[0]: path for path in (results / "dense/allocations").iterdir()}
    assert sorted(files) == ["dlp", "error", "file"]
    assert all(set(block.values()) == {0.75} for block in fractions(files["file"])[2:])
    assert set(fractions(files["file"])[1].values()) == {0.6}
    dense = weights_of(config["model"])
    for run in runs:
        allocation = fractions(files[{"wanda": "dlp", "admm": "dlp", "chosen": "file"}.get(run["name"], "error")])
        recipe = json.loads((results / run["name"] / "checkpoint/gramprune.json").read_text())
        zeros = total = 0
        for key, weight in weights_of(results / run["name"] / "checkpoint").items():
            if "_proj" not in key:
                continue
            block, name = int(key.split(".")[2]), ".".join(key.split(".")[3:5])
            share = allocation[block].get(name)
            if share is None and "down_proj" in name:
                assert ((weight.reshape(-1, 4) != 0).sum(1) <= 2).all(), key
            elif share is None:
                assert block == 0 and weight.equal(dense[key]), key
            elif recipe["run"]["granularity"] == "row":
                assert ((weight == 0).sum(1) == round(share * weight.shape[1])).all(), key
            else:
                assert (weight == 0).sum() == round(share * weight.numel()), key
            if share is not None:
                zeros, total = zeros + int((weight == 0).sum()), total + weight.numel()
        wanted = 0.6 if run["sparsity"] is MIXED else 0.5
        if run["name"] != "chosen":
            assert zeros / total == pytest.approx(wanted, abs=1e-2 if run["name"] == "wanda" else 2e-3)
            assert len({share for block in allocation for share in block.values()}) > 1
        assert recipe["run"]["allocation"]["method"] == allocation_of(run)
    rows = parquet.read_table(clone.folder / "results/summary.parquet").to_pylist()
    named = {row["run"]: row["allocation"] for row in rows}
    assert named["chain"] == "uniform" and named["error"] == "error" and named["dense"] is None
    assert "admm joint, dlp allocation" in (clone.folder / "results/report.html").read_text()
    said = clone.snakemake("plan", config=more).stdout
    assert "Sparsity of wanda in tiny, 50.00% of" in said and "before the allocation dlp" in said

    given.write_text("block 0: 0.25\nblock 2: 0.7\n")
    again = clone.planned(more)
    assert again["allocate", None] == 1 and again["update", "chosen"] == 3 and again["assemble", "chosen"] == 1
    assert not any(again[rule, run["name"]] for rule in ("update", "mask", "assemble") for run in runs[:3])


def allocation_of(run) -> str:
    return run["allocation"] if isinstance(run["allocation"], str) else run["allocation"]["method"]


def test_a_checkpoint_is_refused_whose_zeros_are_not_those_of_the_allocation(clone, tmp_path):
    """The masks of the clone's run `plain` have half of every row; the allocation says one more in one linear."""
    from gramprune.stages.assemble import assemble

    folder = clone.folder / "results/tiny"
    masks = [folder / f"dense/block_{block:03d}/masks/wanda_0.5_row.safetensors" for block in range(3)]
    patterns = [{"pattern": 0.5, "granularity": "row"}] * 3
    fingerprint = json.loads((folder / "model.json").read_text())["fingerprint"]
    names = artifacts.read(masks[0]).provenance["linears"]
    blocks = [dict.fromkeys(names, 0.5) for _ in masks]
    run = {"name": "plain"}

    def assembled(name):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"stage": "allocate", "model": fingerprint, "blocks": blocks}))
        given = {"run": run, "patterns": patterns}
        return assemble(folder / "model.json", masks, tmp_path / name / "checkpoint", given, "code", path)

    assert assembled("as-it-was").startswith("50.0000 % of")
    blocks[1]["mlp.up_proj"] += 1 / 32
    with pytest.raises(GrampruneError) as caught:
        assembled("changed")
    assert_sentence(caught, "block 1, mlp.up_proj: row", "16 pruned weights", "asks for 17", "does not belong")


def test_the_stage_gives_what_the_library_gives(clone, tiny_model, tmp_path):
    """On the clone's dense Gram matrices, every linear of every block."""
    from gramprune import Gram, Pattern
    from gramprune.model.weights import Weights
    from gramprune.pruning.allocation import Linear, allocate
    from gramprune.stages.allocate import allocate_blocks
    from gramprune.stages.pruned import dense_linear

    folder = clone.folder / "results/tiny"
    grams = [folder / f"dense/block_{block:03d}/gram.safetensors" for block in range(3)]
    names = artifacts.read(grams[0]).provenance["linears"]
    wanted = dict.fromkeys(names, 0.7)
    given = {"method": "dlp", "options": {"alpha": None}, "granularity": "row", "blocks": [wanted] * 3}
    tokens = folder / "calibration.safetensors"
    allocate_blocks(folder / "model.json", tokens, grams, None, tmp_path / "a.json", given, "code", "cpu")
    linears = []
    for block, path in enumerate(grams):
        artifact = artifacts.read(path)
        for name, linear in artifact.provenance["linears"].items():
            weight = dense_linear(linear, Weights(tiny_model)).float()
            gram = Gram(artifact.read(linear["gram"]).to(torch.float32))
            linears.append(Linear(block, name, weight, gram, Pattern.parse(0.7)))
    linears.sort(key=lambda each: (each.block, artifacts.read(grams[0]).provenance["linears"][each.name]["gram"]))
    expected = allocate(linears, "dlp")
    assert {(b, n): f for b, block in enumerate(fractions(tmp_path / "a.json")) for n, f in block.items()} == expected
