"""Reconstruction: the kept weights of a block trained as a whole, against Adam written out by hand, and in stages."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import changed
from families import config as family
from problems import assert_sentence
from safetensors import safe_open
from test_families import hidden_states, prune_in_stages

from gramprune.errors import GrampruneError
from gramprune.experiment import checks, pipeline, settings
from gramprune.pruning import reconstruct
from gramprune.pruning.reconstruct import loss, spread, train_kept
from gramprune.storage import artifacts


def problem(samples=40, length=5, columns=6, rows=4, seed=0):
    """Inputs (samples, length, columns), what is aimed at, a pruned matrix (rows, columns) and its mask."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, length, columns, generator=generator, dtype=torch.float64)
    dense = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, columns, generator=generator).argsort(dim=1) < columns // 2
    return inputs, inputs @ dense.T, (dense * mask).contiguous(), mask


def trained(inputs, aims, weight, mask, **options):
    weight = weight.clone().requires_grad_()
    result = train_kept(
        lambda numbers: [inputs[list(numbers)] @ weight.T],
        lambda numbers: [aims[list(numbers)]],
        [weight],
        [mask],
        len(inputs),
        **options,
    )
    return weight.detach(), result


def by_hand(inputs, aims, weight, mask, epochs, rate, batch_size, held):
    """Adam as in its paper (arXiv 1412.6980), gradients of the loss by their formula; weights after every epoch."""
    x, t, w, kept = inputs.numpy(), aims.numpy(), weight.numpy().copy(), mask.numpy()
    first, second, step = np.zeros_like(w), np.zeros_like(w), 0
    training = [number for number in range(len(x)) if number not in held]
    steps = epochs * math.ceil(len(training) / batch_size)
    rising = max(1, round(0.1 * steps))
    shuffled, after = torch.Generator().manual_seed(0), [w.copy()]
    for _ in range(epochs):
        order = [training[place] for place in torch.randperm(len(training), generator=shuffled)]
        for start in range(0, len(order), batch_size):
            rows, wanted = (a[order[start : start + batch_size]].reshape(-1, a.shape[-1]) for a in (x, t))
            off = (rows @ w.T - wanted) / (wanted**2).sum(axis=1, keepdims=True)
            gradient = kept * (2 * off.T @ rows / len(rows))
            first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
            speed = rate * min((step + 1) / rising, (steps - step) / max(1, steps - rising))
            step += 1
            w = w - speed * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.95**step)) + 1e-8)
        after.append(w.copy())
    return after


@pytest.mark.parametrize("batch_size", [1, 8, 36])
def test_the_weights_are_those_of_adam_written_out_by_hand(batch_size):
    inputs, aims, weight, mask = problem()
    held = spread(len(inputs), 0.1)
    new, result = trained(inputs, aims, weight, mask, epochs=4, learning_rate=0.05, batch_size=batch_size)
    expected = by_hand(inputs, aims, weight, mask, 4, 0.05, batch_size, held)
    losses = [
        np.mean([((x @ w.T - t) ** 2).sum() / (t**2).sum() for x, t in zip(inputs[held].reshape(-1, 6).numpy(),
                 aims[held].reshape(-1, 4).numpy(), strict=True)])
        for w in expected
    ]  # fmt: skip
    np.testing.assert_allclose(result["losses"], losses, rtol=1e-9)
    assert result["best"] == int(np.argmin(losses)) > 0
    np.testing.assert_allclose(new.numpy(), expected[result["best"]], rtol=1e-9, atol=1e-12)


def test_what_fits_into_a_forward_pass_changes_only_rounding():
    inputs, aims, weight, mask = problem(samples=11)
    whole, one = (
        trained(inputs, aims, weight, mask, epochs=3, learning_rate=0.05, batch_size=4, at_once=count)[0]
        for count in (4, 1)
    )
    torch.testing.assert_close(whole, one, rtol=1e-10, atol=1e-12)


def test_pruned_weights_are_zero_at_every_step():
    inputs, aims, weight, mask = problem()
    seen = []
    weight.requires_grad_()

    def outputs(numbers):
        seen.append(weight.detach().clone())
        return [inputs[list(numbers)] @ weight.T]

    train_kept(outputs, lambda numbers: [aims[list(numbers)]], [weight], [mask], 40, epochs=3, batch_size=9)
    assert len(seen) > 9 and not torch.equal(seen[0], seen[-1])
    assert all((values[~mask] == 0).all() for values in seen)


def test_the_start_is_kept_bit_for_bit_where_training_makes_it_worse():
    inputs, aims, weight, mask = problem()
    new, result = trained(inputs, aims, weight, mask, epochs=3, learning_rate=1e3)
    assert result["best"] == 0 and min(result["losses"][1:]) > result["losses"][0]
    assert torch.equal(new, weight)


def test_the_learning_rate_that_is_chosen_grows_with_the_kept_weights():
    inputs, aims, weight, mask = problem()
    small, large = (
        trained(inputs, scale * aims, scale * weight, mask, epochs=1, batch_size=40)[0] for scale in (1, 1000)
    )
    torch.testing.assert_close(large, 1000 * small, rtol=1e-3, atol=1e-4)  # Adam's ε has a scale
    moved = (small - weight)[mask].abs()
    rms = float(weight[mask].square().mean().sqrt())
    assert moved.max() == pytest.approx(reconstruct.RELATIVE * rms, rel=1e-3)  # one step, Adam's first


def test_tokens_count_alike_however_large_they_are():
    aims = torch.tensor([[[3.0, 4.0], [300.0, 400.0]]])
    assert loss([aims * 1.1], [aims]).item() == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("samples", [2, 3, 10, 64, 101])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
def test_sequences_are_held_out_over_the_whole_range_and_never_all_or_none(samples, share):
    held = spread(samples, share)
    assert len(set(held)) == len(held) == min(max(1, round(share * samples)), samples - 1)
    assert set(held) < set(range(samples))
    gaps = np.diff([*held, samples])
    assert max(gaps) - min(gaps) <= 1


def test_a_block_that_gives_no_numbers_is_an_error_that_names_it():
    inputs, aims, weight, mask = problem()
    with pytest.raises(GrampruneError, match=r"^block 3: .*NaN or infinite"):
        trained(inputs * math.inf, aims, weight, mask, where="block 3")


TRAINED = {
    "llama": ({}, torch.bfloat16),
    "opt": ({"train": ["weights", "norms", "biases"]}, torch.float32),
    "gpt2": ({"train": ["norms", "biases"], "target": "own"}, torch.float16),
    "mixtral": ({"region": "halves"}, torch.float32),
    "gpt_oss": ({"train": ["weights", "biases"]}, torch.float32),
    "mamba": ({"region": "halves", "target": "own"}, torch.float32),
}


QUICK = ("llama",)


@pytest.fixture(
    scope="module", params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TRAINED]
)
def made(request, tmp_path_factory):
    """A family's model, pruned in stages without and with reconstruction: name, tokens and folders."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    options, dtype = TRAINED[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    AutoModelForCausalLM.from_config(family(request.param, initializer_range=0.1)).to(dtype).save_pretrained(folder)
    tokens = torch.randint(0, 160, (64, 24), generator=torch.Generator().manual_seed(0))
    run = {"sparsity": 0.5, "mask": "wanda", "update": "admm", "propagation": "pruned"}
    for name, more in {
        "without": {},
        "with": {"reconstruct": {"method": "block", "epochs": 4, "batch_size": 8, **options}},
    }.items():
        (folder / name).mkdir()
        prune_in_stages(folder, tokens, {**run, **more}, folder / name)
    return request.param, options, tokens, folder


def test_a_trained_block_is_nearer_to_the_dense_one_and_as_sparse(made):
    _, options, tokens, folder = made
    _, dense = hidden_states(folder, tokens)
    ends = {}
    for which in ("without", "with"):
        _, left = hidden_states(folder / which / "checkpoint", tokens)
        ends[which] = [loss([left[i].float()], [dense[i].float()]).item() for i in sorted(left)]
    assert ends["with"][0] < ends["without"][0]
    if options.get("target") != "own":
        assert ends["with"][-1] < ends["without"][-1]
    zeros = [json.loads((folder / w / "checkpoint/gramprune.json").read_text())["zeros"] for w in ("without", "with")]
    assert zeros[0] == zeros[1] > 0


def test_only_what_is_to_be_trained_differs_in_the_checkpoint(made):
    """Read by the package safetensors. Of the other block parameters not a bit changes."""
    name, options, _, folder = made
    files = [safe_open(place / "model.safetensors", "pt") for place in (folder, folder / "with/checkpoint")]
    tensors = [{key: file.get_tensor(key) for key in file.keys()} for file in files]  # noqa: SIM118
    kinds = {"weights": False, "norms": False, "biases": False}
    for key, dense in tensors[0].items():
        if torch.equal(dense, tensors[1][key]):
            continue
        kind = "weights" if dense.ndim > 1 else "biases" if key.endswith("bias") else "norms"
        kinds[kind] = True
        assert ".layers." in key or ".h." in key or key.startswith("h."), key
    wanted = set(options.get("train", ["weights"])) | {"weights"}  # which the update has changed
    norms = name != "mamba" and "norms" in wanted
    assert kinds == {"weights": True, "norms": norms, "biases": "biases" in wanted}


def test_a_pruned_weight_that_was_not_to_be_trained_stays_as_the_update_left_it(made):
    _, options, _, folder = made
    one, other = (artifacts.read(folder / f"with/0_{which}") for which in ("weights", "reconstructed"))
    linears = one.provenance["linears"]
    same = [torch.equal(one.read(f"{linear}.weight"), other.read(f"{linear}.weight")) for linear in linears]
    assert all(same) if "weights" not in options.get("train", ["weights"]) else not any(same)


def test_the_same_bits_come_out_again(made, tmp_path):
    _, options, tokens, folder = made
    run = {"sparsity": 0.5, "mask": "wanda", "update": "admm", "propagation": "pruned"}
    run["reconstruct"] = {"method": "block", "epochs": 4, "batch_size": 8, **options}
    prune_in_stages(folder, tokens, run, tmp_path)
    files = [place / "checkpoint/model.safetensors" for place in (folder / "with", tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_in_the_workflow_only_what_comes_after_it_runs_again(config, clone, monkeypatch):
    run = {"name": "trained", "sparsity": 0.5, "mask": "wanda", "update": "admm", "propagation": "dense"}
    run["reconstruct"] = {"method": "block", "epochs": 2, "batch_size": 4}
    more = changed(config, lambda new: new["runs"].append(run))
    planned = clone.planned(more)
    monkeypatch.chdir(clone.folder)
    assert sum(planned.values()) == planned["reconstruct", "trained"] + planned["update", "trained"] + 4  # and the end
    found = pipeline.jobs(*checks.check({**more, "results": str(clone.folder / "elsewhere")}))
    assert sum(key[0] == "reconstruct" for key in found) == planned["reconstruct", "trained"] == 3
    clone.run(config=more)
    rows = [json.loads(path.read_text()) for path in sorted(clone.folder.glob("results/tiny/trained/*/recon*.json"))]
    assert [len(row["curve"]) for row in rows] == [3, 3, 3]
    assert "Blocks trained as a whole" in (clone.folder / "results/report.html").read_text()
    again = clone.planned(changed(more, lambda new: new["runs"][-1]["reconstruct"].update(epochs=3)))
    assert again["reconstruct", "trained"] == 3 and sum(again.values()) == 3 + 4
    assert sum(clone.planned(changed(more, lambda new: new["runs"].pop())).values()) == 2  # only the tables


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": "fast"}, ("learning_rate: expected `auto` or a number above 0", "'fast'")),
        ({"learning_rate": 0}, ("learning_rate: expected `auto` or a number above 0", "found 0")),
        ({"train": "weights"}, ("train is 'weights'", "a list")),
        ({"train": []}, ("train is []", "one entry at least")),
        ({"held_out": 1}, ("held_out is 1", "less than 1")),
    ],
    ids=str,
)
def test_a_wrong_option_is_one_sentence(config, options, words):
    run = {"recipe": "wanda", "sparsity": 0.5, "reconstruct": {"method": "block", **options}}
    with pytest.raises(GrampruneError) as caught:
        settings.load({**config, "runs": [run]})
    assert_sentence(caught, "config: runs[0].reconstruct.", *words)


def test_what_is_trained_is_a_list_and_a_list_of_lists_is_a_sweep(config):
    trains = [["weights"], ["weights", "norms"]]
    run = {"name": "t", "recipe": "wanda", "sparsity": 0.5, "reconstruct": {"method": "block", "train": trains}}
    found = settings.load({**config, "runs": [run]}).runs
    assert [(each.name, each.reconstruct.train) for each in found] == [
        ("t-trainweights", trains[0]), ("t-trainweights-norms", trains[1])
    ]  # fmt: skip
