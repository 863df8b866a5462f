"""SparseSwaps against all pairs: its swaps, its proof of the end, its statistics."""

import pytest
import reference
import torch
from problems import DTYPES, PATTERNS, Problem, matrix, problem, tolerance
from refining import SLUG, STARTS, assert_no_swap_helps, correlated, layer_sum, row_errors, run, start

from gramprune import layer_error
from gramprune.pruning import numerics
from gramprune.pruning.refine import sparseswaps

pytestmark = pytest.mark.bits


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
