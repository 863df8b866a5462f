"""Refinements of masks: SparseSwaps and swaps under re-optimised weights against all pairs, DSnoT against its loop."""

from collections.abc import Callable

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DTYPES, PATTERNS, Problem, assert_near, assert_sentence, matrix, problem, tolerance
from torch import Tensor

from gramprune import Gram, GrampruneError, Pattern, layer_error, refine_mask, select_mask, update_weight
from gramprune.pruning import exchange, masks, methods, numerics, refine
from gramprune.pruning.refine import sparseswaps, swaps_reoptimised

pytestmark = pytest.mark.bits

SLUG = {"ids": lambda pattern: Pattern.parse(*pattern).slug}
STARTS = ("wanda", "magnitude", "random")


def gram_of(p: Problem) -> Gram:
    sums = p.inputs.double().sum(dim=0).to(p.inputs.dtype)  # rounded once, whatever the order
    return Gram(p.gram, "block 3 q_proj", sums=sums, tokens=len(p.inputs))


def start(p: Problem, pattern: tuple, method: str) -> Tensor:
    if method == "random":
        return reference.mask(torch.rand(p.weight.shape, generator=torch.Generator().manual_seed(3)), pattern)
    return select_mask(p.weight, p.gram, Pattern.parse(*pattern), method)


def run(p: Problem, mask: Tensor, pattern: tuple, method: str, **options) -> tuple[Tensor, dict]:
    refined, stats = refine_mask(p.weight, gram_of(p), mask, Pattern.parse(*pattern), method, **options)
    over_rows = pattern[1] == "matrix" and method != "dsnot"
    size = Pattern.parse(*pattern).group or (mask.numel() if over_rows else mask.shape[1])
    assert torch.equal(*(m.reshape(-1, size).sum(dim=1) for m in (mask, refined)))
    return refined, stats


def correlated(seed: int, rows: int, columns: int, noise: float = 1.0, dtype: torch.dtype = torch.float64) -> Problem:
    """Inputs that share eight directions, and noise of their own: with little of it, couplings are near 1."""
    generator = torch.Generator().manual_seed(seed)
    inputs = noise * torch.randn(4 * columns, columns, generator=generator).double()
    shared = torch.randn(4 * columns, 8, generator=generator).double()
    inputs += shared @ torch.randn(8, columns, generator=generator).double()
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    return Problem(weight, inputs.to(dtype), (inputs.T @ inputs).to(dtype))


def row_errors(p: Problem) -> Callable[[int, Tensor], Tensor]:
    """For `reference.exchanges`: with kept weights as they are."""
    W, G = p.weight.double(), p.gram.double()
    return lambda i, masks: reference.damped_error(W[i].expand(masks.shape), W[i] * masks, G)


def updated_errors(p: Problem) -> Callable[[int, Tensor], Tensor]:
    """For `reference.exchanges`: with kept weights that are the damped masked least squares."""
    H, W = reference.ridge(p.gram, 0.01), p.weight.double() * (p.gram.diagonal() > 0)
    return lambda i, masks: reference.optimal_errors(W[i], H, masks)


def layer_sum(errors: Callable, mask: Tensor) -> float:
    return sum(float(errors(i, kept[None])) for i, kept in enumerate(mask))


def assert_no_swap_helps(p: Problem, mask: Tensor, pattern: tuple) -> None:
    """By all pairs: none lowers a row's error by more than the tolerance and rounding."""
    W, G = p.weight.double(), p.gram.double()
    for w, kept in zip(W, mask, strict=True):
        z = w * ~kept
        if places := reference.pairs(kept, pattern):
            rounding = torch.finfo(p.weight.dtype).eps * float((w.abs() * G.diagonal().sqrt()).sum() ** 2)
            assert reference.swap_changes(w, G, kept, places).min() >= -1e-6 * float(z @ G @ z) - rounding


@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("sparseswaps", granularities=("row",)))
def test_sparseswaps_makes_the_swaps_of_all_pairs(method, pattern, structure, dtype):
    """arXiv 2512.10922, from several masks. Among ties any pair may be the best: there the end counts."""
    p = problem(structure, dtype)
    output = reference.layer_error(p.weight, torch.zeros_like(p.weight), p.inputs)
    for first in STARTS:
        mask = start(p, pattern, first)
        refined, stats = run(p, mask, pattern, method)
        expected, errors = reference.sparseswaps(p.weight, p.gram, mask, pattern)
        if structure != "ties":
            assert torch.equal(refined, expected)
            assert stats["swaps"].tolist() == [len(row) - 1 for row in errors]
        assert stats["certified"].all()
        assert_no_swap_helps(p, refined, pattern)
        wanted = sum(row[-1] for row in errors)
        assert abs(stats["error_after"] - wanted) <= (0.05 if structure == "ties" else tolerance(dtype)) * output


@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("sparseswaps", granularities=("matrix",)))
def test_sparseswaps_over_a_matrix_end_where_no_pair_within_or_across_rows_helps(method, pattern, structure, dtype):
    """By the errors of all exchanged masks, computed afresh; and not above what swaps within the rows alone reach."""
    p, errors = problem(structure, dtype), row_errors(problem(structure, dtype))
    rounding = tolerance(dtype) * reference.layer_error(p.weight, torch.zeros_like(p.weight), p.inputs)
    for first in STARTS:
        mask = start(p, pattern, first)
        refined, stats = run(p, mask, pattern, method)
        assert stats["certified"].all()
        assert min(change + 1e-6 * share for change, share, *_ in reference.exchanges(errors, refined)) >= -rounding
        within, _ = reference.sparseswaps(p.weight, p.gram, mask, pattern)
        ends = {name: layer_sum(errors, m) for name, m in (("found", refined), ("rows", within))}
        assert abs(stats["error_after"] - ends["found"]) <= rounding
        assert structure == "ties" or ends["found"] <= ends["rows"] + rounding


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["sparseswaps", "swaps-reoptimised"])
def test_swaps_over_a_matrix_end_where_the_best_pairs_of_the_matrix_one_by_one_do(method, seed):
    """On average of the starts within 3 %: both are local optima, and either may be the lower one."""
    p = problem("well_conditioned", seed=seed)
    errors, ratios = (row_errors if method == "sparseswaps" else updated_errors)(p), []
    for first in STARTS:
        mask = start(p, (0.5, "matrix"), first)
        refined, _ = run(p, mask, (0.5, "matrix"), method)
        ratios.append(layer_sum(errors, refined) / layer_sum(errors, reference.matrix_swaps(errors, mask, 1e-9)))
    assert sum(ratios) / len(ratios) < 1.03


@pytest.mark.parametrize("small", [False, True], ids=["", "small limits"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "first, pattern", [("wanda", (0.5, "row")), ("random", (0.7, "row")), ("random", ("4:8", "row"))]
)
def test_the_proof_finds_the_swaps_of_all_pairs_among_strongly_coupled_inputs(
    first, pattern, dtype, small, monkeypatch
):
    """More weights than the shortlists hold: they go stale and overflow; with small limits rows come in batches too."""
    p = correlated(0, rows=6, columns=240, noise=0.1, dtype=dtype)
    if small:
        monkeypatch.setattr(sparseswaps, "SHORTLIST", 4)
        monkeypatch.setattr(sparseswaps, "MISSING", 1)
        monkeypatch.setattr(numerics, "BATCH", 2**15)
    mask = start(p, pattern, first)
    refined, stats = run(p, mask, pattern, "sparseswaps")
    expected, errors = reference.sparseswaps(p.weight, p.gram, mask, pattern)
    if dtype == torch.float64:
        assert torch.equal(refined, expected)
        assert stats["swaps"].tolist() == [len(row) - 1 for row in errors]
    assert stats["certified"].all()
    assert_no_swap_helps(p, refined, pattern)
    accuracy = 1e-9 if dtype == torch.float64 else 0.01
    assert stats["error_after"] == pytest.approx(sum(row[-1] for row in errors), rel=accuracy)


def test_the_statistics_of_sparseswaps_over_a_matrix_are_those_of_its_path():
    """Every step lowers the error; max_swaps counts exchanges per row on average, and what it cuts short is said."""
    p, pattern = correlated(1, rows=5, columns=48, noise=0.1), (0.5, "matrix")
    mask, errors = start(p, pattern, "random"), row_errors(p)
    refined, stats = run(p, mask, pattern, "sparseswaps")
    ends = [layer_sum(errors, m) for m in (mask, refined)]
    assert [stats["error_before"], stats["error_after"]] == pytest.approx(ends)
    assert (stats["curve"][0], stats["curve"][-1]) == (stats["error_before"], stats["error_after"])
    assert stats["curve"] == sorted(stats["curve"], reverse=True) and stats["certified"].all()
    assert (mask & ~refined).sum() <= stats["swaps"].sum() and (mask.sum(dim=1) != refined.sum(dim=1)).any()
    for limit in (1, 2, 4):
        short, some = run(p, mask, pattern, "sparseswaps", max_swaps=limit)
        assert (mask & ~short).sum() <= some["swaps"].sum() <= min(5 * limit, int(stats["swaps"].sum()))
        assert some["error_after"] == pytest.approx(layer_sum(errors, short))
        assert some["error_after"] > stats["error_after"]
        helped = {
            row
            for change, share, i, _, j, _ in reference.exchanges(errors, short)
            if change < -1.01e-6 * share
            for row in (i, j)
        }
        assert {row for row, proved in enumerate(some["certified"]) if not proved} == helped


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p[1] == "row"], **SLUG)
def test_the_statistics_of_sparseswaps_are_those_of_its_path(pattern):
    p = correlated(1, rows=5, columns=48, noise=0.1)
    mask = start(p, pattern, "magnitude")
    refined, stats = run(p, mask, pattern, "sparseswaps")
    curve, swaps = stats["curve"], stats["swaps"]
    errors = [layer_error(p.weight, p.weight * m, p.gram) for m in (mask, refined)]
    assert [stats["error_before"], stats["error_after"]] == pytest.approx(errors)
    assert (curve[0], curve[-1]) == (stats["error_before"], stats["error_after"])
    assert curve == sorted(curve, reverse=True) and len(curve) - 1 == swaps.max() > 2
    assert ((mask & ~refined).sum(dim=1) <= swaps).all()
    for limit in (1, 2):
        short, some = run(p, mask, pattern, "sparseswaps", max_swaps=limit)
        assert torch.equal(short, reference.sparseswaps(p.weight, p.gram, mask, pattern, max_swaps=limit)[0])
        assert torch.equal(some["swaps"], swaps.clamp(max=limit)) and not some["certified"][swaps > limit].any()
        assert some["curve"] == pytest.approx(curve[: limit + 1])


def test_sparseswaps_scores_pairs_and_not_weights_one_by_one():
    """arXiv 2512.10922: pruned {10, −1}, kept {9, −9}, all inputs the same; the separate choices would give 100."""
    weight = torch.tensor([[10.0, -1.0, 9.0, -9.0]]).double()
    p = Problem(weight, torch.ones(1, 4).double(), torch.ones(4, 4).double())
    mask = torch.tensor([[False, False, True, True]])
    for pattern in ((0.5, "row"), ("2:4", "row")):
        _, stats = run(p, mask, pattern, "sparseswaps", max_swaps=1)
        assert stats["curve"] == [81, 1]


@st.composite
def small_cases(draw) -> tuple[Problem, Tensor, tuple]:
    """A problem of any rank, a random mask and its pattern."""
    pattern = draw(st.sampled_from(PATTERNS))
    columns, tokens = 8 * draw(st.integers(1, 3)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    inputs = torch.randn(tokens, columns, generator=generator).double()
    inputs *= 10.0 ** torch.randint(-1, 2, (columns,), generator=generator)
    weight, scores = (torch.randn(draw(st.integers(1, 4)), columns, generator=generator).double() for _ in "ws")
    return Problem(weight, inputs, inputs.T @ inputs), reference.mask(scores[:1].expand(weight.shape), pattern), pattern


@settings(max_examples=60, deadline=None)
@given(small_cases())
def test_swaps_never_raise_the_error_of_a_row_or_of_the_matrix(case):
    p, mask, pattern = case
    refined, _ = run(p, mask, pattern, "sparseswaps")
    assert_no_swap_helps(p, refined, pattern)
    before, after = (reference.damped_error(p.weight, p.weight * m, p.gram) for m in (mask, refined))
    output = reference.damped_error(p.weight, 0 * p.weight, p.gram)
    choices = (lambda errors: errors.sum()) if pattern[1] == "matrix" else (lambda errors: errors)
    assert (choices(after) <= choices(before + 1e-12 * output)).all()
    H = reference.ridge(p.gram, 0.01)
    before = reference.damped_error(p.weight, reference.least_squares(p.weight, H, mask), H)
    for exact_inputs in (1024, 1):
        refined, _ = run(p, mask, pattern, "swaps-reoptimised", exact_inputs=exact_inputs)
        after = reference.damped_error(p.weight, reference.least_squares(p.weight, H, refined), H)
        assert (choices(after) <= choices(before + 1e-12 * output)).all()


@pytest.mark.parametrize("pattern", PATTERNS, **SLUG)
def test_permuting_the_inputs_permutes_the_refined_mask(pattern):
    """Of N:M, whole groups and the inputs within each."""
    p, size, generator = problem("well_conditioned"), Pattern.parse(*pattern).group or 1, torch.Generator()
    order = torch.randperm(16 // size, generator=generator.manual_seed(1))[:, None] * size
    order = (order + torch.randperm(size, generator=generator)).flatten()
    q = Problem(p.weight[:, order], p.inputs[:, order], p.gram[order][:, order])
    mask = start(p, pattern, "random")
    for method in methods.names(refine):
        assert torch.equal(run(q, mask[:, order], pattern, method)[0], run(p, mask, pattern, method)[0][:, order])


@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("dsnot"))
def test_dsnot_is_the_reference(method, pattern, structure, dtype):
    """arXiv 2310.08915, with means and variances from the inputs themselves."""
    p = problem(structure, dtype)
    if structure == "one_token":
        p = problem("well_conditioned", dtype, seed=1)  # one token has no variance to divide by
    if structure == "ties":
        p.inputs[:] += torch.arange(16) / 16  # else effects tie, and are zero
        p = Problem(p.weight, p.inputs, p.inputs.T @ p.inputs)
    for first in STARTS:
        mask = start(p, pattern, first)
        for options in ({}, {"threshold": 1e-3}, {"threshold": 0.0, "cycles": 2}):
            refined, stats = run(p, mask, pattern, method, **options)
            expected, swaps = reference.dsnot(p.weight, p.inputs, mask, pattern, **options)
            assert torch.equal(refined, expected) and stats["swaps"].tolist() == swaps
        errors = [layer_error(p.weight, p.weight * m, p.gram) for m in (mask, refined)]
        assert [stats["error_before"], stats["error_after"]] == pytest.approx(errors)


def test_dsnot_brings_the_mean_output_of_inputs_that_are_not_centred_nearer_to_the_dense_one():
    """arXiv 2310.08915: the expected error of a row is what it lowers."""
    p = correlated(0, rows=8, columns=256)
    inputs = p.inputs + torch.randn(256, generator=torch.Generator().manual_seed(0))
    p = Problem(p.weight, inputs, inputs.T @ inputs)
    mask = start(p, (0.5, "row"), "wanda")
    refined, _ = run(p, mask, (0.5, "row"), "dsnot")
    means = [float((p.weight * ~m @ inputs.mean(dim=0)).abs().mean()) for m in (mask, refined)]
    assert means[1] < 0.5 * means[0]


@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("swaps-reoptimised", granularities=("row",)))
def test_reoptimised_swaps_are_those_of_brute_force(method, pattern, structure, dtype):
    """The masked least squares of every swapped mask, computed afresh: the best is taken until none helps [derived].

    The same masks in float64, but for dead inputs, which are all alike; in float32, and among ties, no swap may help
    by more than rounding.
    """
    p = problem(structure, dtype)
    H = reference.ridge(p.gram, 0.01)
    live = p.weight.double() * (p.gram.diagonal() > 0)
    energy = float(reference.damped_error(live, 0 * live, H).max())
    for first in STARTS if dtype == torch.float64 else STARTS[:1]:
        mask = start(p, pattern, first)
        refined, stats = run(p, mask, pattern, method)
        if dtype == torch.float64 and structure != "ties":
            expected, errors = reference.swaps_reoptimised(p.weight, p.gram, mask, pattern)
            seen = p.gram.diagonal() > 0
            assert torch.equal(refined[:, seen], expected[:, seen])
            assert stats["swaps"].tolist() == [len(row) - 1 for row in errors]
        for w, kept in zip(live, refined, strict=True):
            if places := reference.pairs(kept, pattern):
                error = float(reference.optimal_errors(w, H, kept[None]))
                least = float(reference.optimal_errors(w, H, reference.swapped(kept, places)).min())
                assert least >= (1 - 1e-6) * error - tolerance(dtype) * energy
        for key, m in (("error_before", mask), ("error_after", refined)):
            optimum = reference.least_squares(p.weight, H, m)
            error = float(reference.damped_error(live, optimum * (p.gram.diagonal() > 0), H).sum())
            assert abs(stats[key] - error) <= tolerance(dtype) * energy
        assert stats["error_after"] <= stats["error_before"] and stats["searched"] == "exactly"


@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("swaps-reoptimised", granularities=("matrix",)))
def test_reoptimised_swaps_over_a_matrix_end_where_no_pair_within_or_across_rows_helps(
    method, pattern, structure, dtype
):
    """By the masked least squares of all exchanged masks [derived]; not above what swaps within the rows reach."""
    p, errors = problem(structure, dtype), updated_errors(problem(structure, dtype))
    energy = max(float(errors(i, torch.zeros(1, p.weight.shape[1], dtype=torch.bool))) for i in range(len(p.weight)))
    for first in STARTS if dtype == torch.float64 else STARTS[:1]:
        mask = start(p, pattern, first)
        refined, stats = run(p, mask, pattern, method)
        rounding = tolerance(dtype) * energy
        assert min(change + 1e-6 * share for change, share, *_ in reference.exchanges(errors, refined)) >= -rounding
        found = layer_sum(errors, refined)
        within, _ = reference.swaps_reoptimised(p.weight, p.gram, mask, pattern)
        if dtype == torch.float64 and structure != "ties":
            assert found <= layer_sum(errors, within) + rounding
        assert abs(stats["error_after"] - found) <= len(mask) * rounding
        assert stats["error_after"] <= stats["error_before"] and stats["searched"] == "exactly"


@pytest.mark.parametrize("seed", range(4))
def test_a_few_likely_pairs_are_tried_first_but_the_end_is_where_no_pair_helps(seed, monkeypatch):
    monkeypatch.setattr(swaps_reoptimised, "FEW", 1)
    p = problem("well_conditioned", seed=seed)
    H = reference.ridge(p.gram, 0.01)
    refined, _ = run(p, start(p, (0.5, "row"), "random"), (0.5, "row"), "swaps-reoptimised")
    for w, kept in zip(p.weight, refined, strict=True):
        after = reference.optimal_errors(w, H, reference.swapped(kept, reference.pairs(kept, (0.5, "row"))))
        assert after.min() >= (1 - 2e-6) * float(reference.optimal_errors(w, H, kept[None]))


def test_a_tableau_after_pivots_is_a_fresh_one():
    """Principal pivots on {u, p}; the state is v where kept and −r where pruned."""
    p, generator = problem("well_conditioned"), torch.Generator().manual_seed(0)
    system, dense = Gram(p.gram).damped(0.01)[0], p.weight * Gram(p.gram).norms

    def fresh(mask: Tensor) -> tuple[Tensor, Tensor]:
        v = reference.least_squares(dense, system, mask)
        return swaps_reoptimised._tableau(system, mask.nonzero()[:, 1].view(len(mask), -1), ""), v - (
            dense - v
        ) @ system

    mask = start(p, (0.5, "row"), "random")
    tableau, state = (tensor.clone() for tensor in fresh(mask))
    for _ in range(20):
        scores = torch.rand(mask.shape, generator=generator)
        u, q = (scores * mask).argmax(dim=1), (scores * ~mask).argmax(dim=1)
        swaps_reoptimised._pivot(tableau, state, torch.stack([u, q], dim=1))
        mask[range(6), u], mask[range(6), q] = False, True
    for found, expected in zip((tableau, state), fresh(mask), strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("pattern", PATTERNS, **SLUG)
def test_batches_of_swaps_end_near_the_exact_search(pattern):
    """Within 10 %: measured are 1 to 8 % here, but 43 % for 2:4 where the scaled Gram matrix has a condition of 3e4."""
    p = correlated(1, rows=16, columns=64)
    ends = {}
    for exact_inputs in (64, 63):
        _, stats = run(p, start(p, pattern, "wanda"), pattern, "swaps-reoptimised", exact_inputs=exact_inputs)
        ends[stats["searched"]] = stats["error_after"]
    assert ends["exactly"] < 0.9 * stats["error_before"]
    assert ends["in batches"] < 1.1 * ends["exactly"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pattern", [(0.5, "row"), (0.7, "row"), ("2:4", "row")], **SLUG)
def test_reoptimised_swaps_end_below_gradual_admm_and_alps(pattern, seed):
    """With the exact update for the masks of all; from Wanda's mask and from those of the two themselves [derived]."""
    p = correlated(seed, rows=8, columns=96 + 32 * seed)

    def error(mask: Tensor) -> float:
        return layer_error(p.weight, update_weight(p.weight, p.gram, mask, "exact")[0], p.gram)

    starts = {method: start(p, pattern, method) for method in ("wanda", "admm", "alps")}
    best = min(error(starts["admm"]), error(starts["alps"]))
    for mask in starts.values():
        assert error(run(p, mask, pattern, "swaps-reoptimised")[0]) < 0.99 * best


@pytest.mark.parametrize("pattern", [(0.5, "matrix"), ("2:4", "row")], **SLUG)
@pytest.mark.parametrize("exact_inputs", [16, 1])
def test_the_length_of_the_batches_of_rows_does_not_change_the_mask(exact_inputs, pattern, monkeypatch):
    p = problem("well_conditioned")
    mask = start(p, pattern, "random")
    expected, _ = run(p, mask, pattern, "swaps-reoptimised", exact_inputs=exact_inputs)
    for elements in (1, 2500):
        monkeypatch.setattr(numerics, "BATCH", elements)
        assert torch.equal(run(p, mask, pattern, "swaps-reoptimised", exact_inputs=exact_inputs)[0], expected)


@pytest.mark.parametrize("granularity", ["row", "matrix"])
@pytest.mark.parametrize("exact_inputs", [16, 1])
def test_reoptimised_swaps_keep_to_their_number(exact_inputs, granularity):
    """Of every row, or over a matrix on average."""
    p, pattern = problem("well_conditioned"), (0.5, granularity)
    mask, before = start(p, pattern, "random"), None
    for limit in (1, 2, 5):
        refined, stats = run(p, mask, pattern, "swaps-reoptimised", max_swaps=limit, exact_inputs=exact_inputs)
        made, pruned = stats["swaps"], (mask & ~refined).sum(dim=1)
        if granularity == "matrix":
            made, pruned = made.sum() / len(mask), pruned.sum() / len(mask)
        assert (made <= limit).all() and (pruned <= made).all()
        assert before is None or stats["error_after"] < before
        before = stats["error_after"]


@st.composite
def changes_of_rows(draw) -> tuple[Tensor, Tensor]:
    """Removals and additions (rows, n), some of them not to be had."""
    rows, steps = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    value = st.one_of(st.integers(-4, 4), st.just(float("inf")))
    values = st.lists(st.lists(value, min_size=steps, max_size=steps), min_size=rows, max_size=rows)
    return torch.tensor(draw(values)).double(), torch.tensor(draw(values)).double()


@settings(max_examples=200, deadline=None)
@given(changes_of_rows(), st.integers(0, 6))
def test_rows_are_matched_while_a_pair_of_two_rows_lowers_the_error(changes, limit):
    removals, additions = changes
    pairs = {
        (i, j): float(removals[i, 0] + additions[j, 0])
        for i in range(len(removals))
        for j in range(len(removals))
        if i != j
    }
    helped = {row for pair, change in pairs.items() if change < 0 for row in pair}
    assert exchange.improvable(removals[:, 0], additions[:, 0]).nonzero()[:, 0].tolist() == sorted(helped)
    net = exchange.matched(removals, additions, limit)
    assert net.sum() == 0 and net.abs().sum() <= 2 * limit and net.abs().max() <= removals.shape[1]
    assert bool(net.any()) == bool(helped and limit)
    total = sum(float((removals if n < 0 else additions)[i, : abs(n)].sum()) for i, n in enumerate(net.tolist()))
    assert total <= 0 and (limit != 1 or not helped or total == min(pairs.values()))


@pytest.mark.parametrize("method", methods.names(refine))
@pytest.mark.parametrize("pattern", PATTERNS, **SLUG)
def test_every_refinement_keeps_the_counts_of_every_mask_and_its_arguments(pattern, method):
    for structure, dtype in (("well_conditioned", torch.float32), ("dead_inputs", torch.float64)):
        p, before = problem(structure, dtype), problem(structure, dtype)
        for first in masks.names():
            mask = select_mask(p.weight, p.gram, Pattern.parse(*pattern), first)
            given_mask = mask.clone()
            refined, _ = run(p, mask, pattern, method)
            Pattern.parse(*pattern).check_mask(refined, first)
            assert torch.equal(refined, run(p, mask, pattern, method)[0])
            assert torch.equal(mask, given_mask) and torch.equal(p.weight, before.weight)


@pytest.mark.parametrize(
    "method, options, words",
    [
        ("sparseswaps", {"max_swaps": 0}, ["sparseswaps", "max_swaps", "0"]),
        ("sparseswaps", {"tolerance": -1}, ["sparseswaps", "tolerance", "-1"]),
        ("swaps-reoptimised", {"max_swaps": 0}, ["swaps-reoptimised", "max_swaps", "0"]),
        ("swaps-reoptimised", {"damping": -1}, ["damping", "-1"]),
        ("dsnot", {"cycles": 0}, ["dsnot", "cycles", "0"]),
        ("dsnot", {"threshold": -1}, ["dsnot", "threshold", "-1"]),
    ],
)
def test_options_out_of_range_are_refused_in_one_sentence(method, options, words):
    p = problem("well_conditioned")
    with pytest.raises(GrampruneError) as error:
        run(p, start(p, (0.5, "row"), "wanda"), (0.5, "row"), method, **options)
    assert_sentence(error, "block 3 q_proj", *words)


def test_what_a_refinement_lacks_is_said_in_one_sentence():
    p, pattern = problem("well_conditioned"), Pattern.parse(0.5)
    mask = start(p, (0.5, "row"), "wanda")
    for gram, given_mask, method, words in (
        (Gram(p.gram, "block 3 q_proj"), mask, "dsnot", ["dsnot", "sums", "tokens"]),
        (Gram(p.gram, "block 3 q_proj", sums=p.inputs.sum(dim=0)), mask, "dsnot", ["dsnot", "sums", "tokens"]),
        (Gram(p.gram, "block 3 q_proj"), ~mask & False, "sparseswaps", ["row 0", "16 pruned"]),
        (Gram(p.gram, "block 3 q_proj"), mask[:5], "sparseswaps", ["(5, 16)", "(6, 16)"]),
    ):
        with pytest.raises(GrampruneError) as error:
            refine_mask(p.weight, gram, given_mask, pattern, method)
        assert_sentence(error, "block 3 q_proj", *words)


def test_kept_weights_without_a_definite_system_are_an_error_and_not_an_end_of_the_search():
    system = torch.ones(4, 4)  # rank one
    with pytest.raises(GrampruneError) as error:
        swaps_reoptimised._tableau(system, torch.tensor([[0, 1]]), "block 3, q_proj")
    assert_sentence(error, "block 3, q_proj", "not positive definite", "damping")
