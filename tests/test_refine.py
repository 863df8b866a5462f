"""What holds of all refinements of masks, and DSnoT against its loop."""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PATTERNS, Problem, assert_sentence, matrix, problem
from refining import (
    SLUG,
    STARTS,
    assert_no_swap_helps,
    correlated,
    layer_sum,
    row_errors,
    run,
    start,
    updated_errors,
)
from torch import Tensor

from gramprune import Gram, GrampruneError, Pattern, layer_error, refine_mask, select_mask
from gramprune.pruning import exchange, masks, methods, refine

pytestmark = pytest.mark.bits


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
