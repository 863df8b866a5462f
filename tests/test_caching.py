"""What reruns after a change: each row of the rerun table, read from a dry run's jobs."""

import contextlib
from collections import Counter

import pytest
from conftest import changed

LAST = Counter({("summary", None): 1, ("report", None): 1})


def after(run: str) -> Counter:
    """What follows when a run's weights change."""
    return Counter({("assemble", run): 1, ("perplexity", run): 1}) + LAST


def run_of(config, name):
    return next(run for run in config["runs"] if run["name"] == name)


def test_nothing_reruns_when_nothing_changed(clone, config):
    assert clone.planned() == Counter()
    assert clone.planned(config) == Counter()


def test_comments_key_order_and_cores_rerun_nothing(clone, config):
    path = clone.folder / "config.yaml"
    before = path.read_text()
    try:
        path.write_text("# a comment\n" + before)
        assert clone.planned() == Counter()
    finally:
        path.write_text(before)
    turned = changed(config, lambda c: c.update(calibration=dict(reversed(c["calibration"].items()))))
    assert clone.planned(dict(reversed(turned.items()))) == Counter()
    assert "Nothing to be done" in clone.snakemake("--dry-run", "--cores", "1").stdout
    assert clone.planned(changed(config, lambda c: c.update(batch_size=2, threads=2, device="cpu"))) == Counter()
    assert clone.planned(changed(config, lambda c: c["evaluation"].update(memory="streamed"))) == Counter()


def test_an_option_of_an_update_reruns_that_runs_updates_and_the_chain_behind_them(clone, config):
    new = changed(config, lambda c: run_of(c, "chain").update(update={"method": "admm", "iterations": 10}))
    chain = Counter({("update", "chain"): 3, ("capture", "chain"): 2, ("mask", "chain"): 2})
    assert clone.planned(new) == chain + after("chain")


def test_with_dense_propagation_it_reruns_no_gram_and_no_mask(clone, config):
    new = changed(config, lambda c: run_of(c, "apart").update(update={"method": "admm", "iterations": 10}))
    assert clone.planned(new) == Counter({("update", "apart"): 3}) + after("apart")


def test_an_option_of_a_refinement_reruns_from_the_refinement_on(clone, config):
    refine = {"method": "sparseswaps", "max_swaps": 2}
    planned = clone.planned(changed(config, lambda c: run_of(c, "refined").update(refine=refine)))
    chain = Counter({("refine", "refined"): 2, ("capture", "refined"): 2, ("mask", "refined"): 2})
    assert planned == Counter({("refine", "dense"): 1}) + chain + after("refined")  # block 0 is on the dense trail

    def apart(c):
        c["runs"].append({"name": "new", "sparsity": 0.5, "mask": "wanda", "refine": refine, "propagation": "dense"})

    assert clone.planned(changed(config, apart)) == Counter({("refine", "dense"): 3}) + after("new")


def test_another_target_reruns_the_blocks_that_see_pruned_ones(clone, config):
    behind = Counter({("mask", "aimed"): 2, ("refine", "aimed"): 2, ("update", "aimed"): 2}) + after("aimed")
    pull = changed(config, lambda c: run_of(c, "aimed").update(target={"method": "dense", "pull": 1.0}))
    assert clone.planned(pull) == behind + Counter({("capture", "aimed"): 1})  # what enters block 1 is the same
    own = changed(config, lambda c: run_of(c, "aimed").update(target="own"))
    assert clone.planned(own) == behind + Counter({("capture", "aimed"): 2})


def test_another_precision_reruns_masks_and_what_follows(clone, config):
    new = changed(config, lambda c: run_of(c, "apart").update(precision="float64"))
    assert clone.planned(new) == Counter({("mask", "dense"): 3, ("update", "apart"): 3}) + after("apart")


def test_another_seed_reruns_everything_but_fetching_and_the_dense_evaluation(clone, config):
    planned = clone.planned(changed(config, lambda c: c["calibration"].update(seed=1)))
    assert planned[("calibrate", None)] == 1
    assert planned[("capture", "dense")] == 3
    assert planned[("capture", "chain")] == planned[("capture", "joint")] == 2
    assert not [job for job in planned if job[0].startswith("fetch")]
    assert ("perplexity", "dense") not in planned
    assert all(planned[("perplexity", run["name"])] == 1 for run in config["runs"])


def test_another_evaluation_window_reruns_evaluations_and_tables(clone, config):
    planned = clone.planned(changed(config, lambda c: c["evaluation"]["perplexity"].update(length=32)))
    runs = ["dense", *(run["name"] for run in config["runs"])]
    assert planned == LAST + Counter({("perplexity", run): 1 for run in runs})


@pytest.mark.slow
def test_a_new_run_only_adds_its_own_jobs(clone, config):
    def add(c):
        c["runs"].append({"name": "new", "sparsity": 0.5, "mask": "magnitude", "update": "admm"})

    own = Counter({("mask", "dense"): 1, ("mask", "new"): 2, ("capture", "new"): 2, ("update", "new"): 3})
    assert clone.planned(changed(config, add)) == own + after("new")

    def share(c):
        c["runs"].append({"name": "new", "sparsity": 0.5, "mask": "wanda", "propagation": "dense"})

    assert clone.planned(changed(config, share)) == after("new")  # its masks are those of the run `plain`

    def aim(c):
        c["runs"].append({"name": "new", "sparsity": 0.5, "mask": "wanda", "update": "admm", "target": "dense"})

    own = Counter({("mask", "new"): 2, ("capture", "new"): 2, ("update", "new"): 3})
    assert clone.planned(changed(config, aim)) == own + after("new")

    def alone(c):
        aim(c)
        c.update(runs=c["runs"][-1:], results="alone")

    # the dense model's hidden states are made for it, also in its last block
    planned = clone.planned(changed(config, alone))
    assert planned["capture", "dense"] == 3 and planned["capture", "new"] == 2 and planned["mask", "dense"] == 1


def test_a_removed_run_reruns_only_the_tables(clone, config):
    assert clone.planned(changed(config, lambda c: c["runs"].pop())) == LAST


@contextlib.contextmanager
def edited(clone, module, old, new):
    """The library of the clone with one piece of code replaced."""
    path = clone.folder / "src/gramprune" / module
    before = path.read_text()
    assert old in before
    try:
        path.write_text(before.replace(old, new, 1))
        yield
    finally:
        path.write_text(before)


def test_code_of_one_method_reruns_the_stages_and_runs_that_use_it(clone):
    with edited(clone, "pruning/masks/wanda.py", "return pattern.mask(", "return pattern.mask(1.0 * "):
        planned = clone.planned()
    assert planned[("mask", "dense")] == 3 and planned[("mask", "chain")] == 2
    assert not [job for job in planned if job[1] == "joint" or job == ("capture", "dense")]
    with edited(clone, "pruning/joint/admm.py", "if progress >= 1:", "if progress >= 1.0:"):
        planned = clone.planned()
    assert planned == Counter({("update", "joint"): 3, ("capture", "joint"): 2}) + after("joint")


def test_comments_and_docstrings_in_the_library_rerun_nothing(clone):
    with (
        edited(clone, "pruning/masks/wanda.py", "import Tensor\n", "import Tensor  # a comment\n"),
        edited(clone, "pruning/updates/admm.py", "When to use: ", "When to use it: "),
    ):
        assert clone.planned() == Counter()


@pytest.mark.parametrize("artifact", ["dense/block_000/gram.safetensors", "chain/block_001/weights.safetensors"])
def test_a_deleted_intermediate_is_not_needed_by_a_finished_run(clone, artifact):
    path = clone.folder / "results/tiny" / artifact
    aside = path.with_suffix(".aside")
    path.rename(aside)
    try:
        assert clone.planned() == Counter()
    finally:
        aside.rename(path)
