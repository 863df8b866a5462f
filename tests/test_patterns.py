"""Sparsity by linears and blocks: which value each linear gets, what is refused, and a real run."""

from collections import Counter

import pytest
from conftest import changed, copied
from problems import assert_sentence
from safetensors.torch import load_file

from gramprune import GrampruneError
from gramprune.experiment import checks, patterns, settings
from gramprune.storage.files import read_json

BASE = {
    "model": "demo",
    "calibration": {"dataset": "demo", "length": 64},
    "evaluation": {"perplexity": {"datasets": ["demo_heldout"], "length": 64}},
}
LINEARS = ["self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"]
MIXED = {"default": 0.6, "*.down_proj": "2:4", "block 0": "dense", "block 1-2 *.q_proj": 0.3, "block -1 *.q_proj": 0.4}


def load(**run):
    return settings.load({**BASE, "runs": [run]}).runs[0]


def test_the_nearest_key_that_fits_a_linear_holds_whatever_the_order():
    run = load(sparsity=MIXED, mask="wanda")
    turned = load(sparsity=dict(sorted(MIXED.items())), mask="wanda")
    assert turned.name == run.name and turned.pattern_label == run.pattern_label
    blocks = [run.at(block, 4, LINEARS) for block in range(4)]
    assert blocks == [turned.at(block, 4, LINEARS) for block in range(4)]
    assert [[str(block.pattern_of(name) or "dense") for name in LINEARS] for block in blocks] == [
        ["dense", "dense", "dense"],
        ["0.3", "0.6", "2:4"],
        ["0.3", "0.6", "2:4"],
        ["0.4", "0.6", "2:4"],
    ]
    near = {"default": 0.1, "*": 0.2, "mlp.up_proj": 0.3, "block 0-3": 0.4, "block 1-2": 0.5, "block 2 mlp.*": 0.6}
    run = load(sparsity=near, mask="wanda")
    assert [run.at(block, 5, LINEARS).sparsity for block in (0, 1)] == [0.4, 0.5]
    assert run.at(2, 5, LINEARS).sparsity == dict(zip(LINEARS, (0.5, 0.6, 0.6), strict=True))
    assert run.at(4, 5, LINEARS).sparsity == dict(zip(LINEARS, (0.2, 0.3, 0.2), strict=True))


def test_blocks_share_masks_with_every_run_that_has_the_same_there():
    blocks = [load(sparsity=MIXED, mask="wanda").at(block, 4, LINEARS) for block in range(4)]
    assert blocks[1].mask_slug == blocks[2].mask_slug != blocks[3].mask_slug
    plain = load(sparsity=0.6, mask="wanda")
    other = load(sparsity={"default": "2:4", "block 3": 0.6}, mask="wanda")
    assert other.at(3, 4, LINEARS).mask_settings == plain.at(0, 4, LINEARS).mask_settings
    assert other.at(3, 4, LINEARS).mask_slug == plain.mask_slug


def test_granularity_is_of_fractions_and_a_recipe_with_one_may_have_groups_too():
    run = load(recipe="best", sparsity=MIXED).at(1, 4, LINEARS)
    assert [run.pattern_of(name).granularity for name in LINEARS] == ["matrix", "matrix", "group"]
    assert load(recipe="best", sparsity={"default": "2:4", "block 0": "dense"}).granularity == "row"


def test_lists_inside_are_sweeps_and_names_say_what_differs():
    swept = {"mask": "wanda", "sparsity": [0.5, {"default": [0.5, 0.6], "*.down_proj": 0.4, "block 0": "dense"}]}
    assert [run.name for run in settings.load({**BASE, "runs": [swept]}).runs] == [
        "wanda-0.5",
        "wanda-0.5-down_proj-0.4-block-0-dense",
        "wanda-0.6-down_proj-0.4-block-0-dense",
    ]


def test_blocks_that_get_the_same_are_one_line_for_people():
    blocks = [load(sparsity=MIXED, mask="wanda").at(block, 4, LINEARS).sparsity for block in range(4)]
    assert patterns.described(blocks, [LINEARS] * 4) == [
        "block 0: dense",
        "blocks 1-2: 0.3; mlp.up_proj 0.6; mlp.down_proj 2:4",
        "block 3: 0.4; mlp.up_proj 0.6; mlp.down_proj 2:4",
    ]


@pytest.mark.parametrize(
    "sparsity, words",
    [
        ({"*.x": 0.5}, ("sparsity", "no `default`")),
        ({}, ("sparsity", "no `default`")),
        ({"default": "dense"}, ("sparsity", "stays dense")),
        ({"default": 0.5, "block x": 0.1}, ("'block x'", "`block 4-7`")),
        ({"default": 0.5, "block 3-1": 0.1}, ("'block 3-1'", "smaller number first")),
        ({"default": 0.5, "block 1": 2}, ("sparsity 2", "strictly between")),
        ({"default": 0.5, "block 1": "dens"}, ("'dens'", "strictly between")),
        ({"default": 0.5, "block 4": 0.1}, ("'block 4'", "blocks 0 to 3")),
        ({"default": 0.5, "*.dwn_proj": 0.1}, ("'*.dwn_proj'", "mlp.down_proj")),
        ({"default": 0.5, "mlp.*": 0.1, "*.down_proj": 0.2}, ("'mlp.*'", "'*.down_proj'", "'block 0 mlp.down_proj'")),
        ({"default": 0.5, "block 3": 0.1, "block -1": 0.2}, ("'block 3'", "'block -1'", "nearer")),
        ({"default": "dense", "*.q_proj": "3:7"}, ("q_proj", "3:7", "divides 64")),
    ],
)
def test_what_fits_nothing_is_refused_in_a_sentence(sparsity, words, tmp_path):
    with pytest.raises(GrampruneError) as caught:
        checks.check({**BASE, "results": str(tmp_path / "new"), "runs": [{"mask": "wanda", "sparsity": sparsity}]})
    assert_sentence(caught, *words)


@pytest.mark.slow
def test_a_run_has_what_its_mapping_says_and_adds_jobs_only_where_that_differs(clone, config, tmp_path):
    sparsity = {"default": 0.5, "*.down_proj": "1:4", "block 0": "dense", "block -1 self_attn.*": "dense"}
    runs = [
        {"name": "mixed", "sparsity": sparsity, "mask": "wanda", "update": "admm"},
        {"name": "joint-mixed", "sparsity": {**sparsity, "block 0": 0.5}, "mask": "admm", "update": "joint"},
        {"name": "chosen", "sparsity": {**sparsity, "block 1": 0.5}, "mask": "wanda", "propagation": "dense"},
    ]
    clone = copied(clone.folder, tmp_path)
    more = changed(config, lambda c: c["runs"].extend(runs))
    planned = clone.planned(more)
    assert planned["mask", "dense"] == 2  # of `chosen` blocks 0, which `mixed` has too, and 2: block 1 is as in `plain`
    clone.run(config=more)
    dense = weights_of(config["model"])
    for run in runs:
        found = weights_of(clone.folder / "results/tiny" / run["name"] / "checkpoint")
        for key, weight in found.items():
            zeros = Counter((weight == 0).sum(1).tolist()) if weight.ndim == 2 else {}
            if not (name := asked(key, run["name"])):
                assert weight.equal(dense[key]), key
            elif name == "1:4":
                assert ((weight.reshape(-1, 4) != 0).sum(1) <= 1).all(), key
            else:
                assert set(zeros) == {weight.shape[1] // 2}, key
        recipe = read_json(clone.folder / "results/tiny" / run["name"] / "checkpoint/gramprune.json")
        zeros = sum(int((weight == 0).sum()) for key, weight in found.items() if "_proj" in key)
        total = sum(weight.numel() for key, weight in found.items() if "_proj" in key)
        assert recipe["sparsity"] == pytest.approx(zeros / total, abs=1e-12)
    said = clone.snakemake("plan", config=more).stdout
    assert "Sparsity of chosen in tiny" in said and "block 1: 0.5\n" in said


def asked(key: str, run: str) -> str:
    """What a stored matrix is to have, written out by hand; nothing where it stays dense."""
    if "_proj" not in key:
        return ""
    block, attention = int(key.split(".")[2]), "self_attn" in key
    down = "1:4" if "down_proj" in key else "0.5"
    if block == 0:
        return "0.5" if run == "joint-mixed" else ""
    if block == 1:
        return "0.5" if run == "chosen" else down
    return "" if attention else down


def weights_of(folder):
    from pathlib import Path

    return {key: tensor for path in Path(folder).glob("*.safetensors") for key, tensor in load_file(path).items()}
