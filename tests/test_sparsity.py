"""Patterns: exactly the requested zeros, at the smallest scores, with one rule for ties."""

import re

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PATTERNS, assert_sentence

from gramprune import GrampruneError, Pattern
from gramprune.pruning.sparsity import MANY, smallest

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@st.composite
def scored_patterns(draw):
    """A pattern and scores of a shape that it fits, most of them tied."""
    if draw(st.booleans()):
        group = draw(st.integers(2, 8))
        pattern = (f"{draw(st.integers(1, group - 1))}:{group}", "row")
        columns = group * draw(st.integers(1, 4))
    else:
        pattern = (draw(st.floats(0.01, 0.99)), draw(st.sampled_from(["row", "matrix"])))
        columns = draw(st.integers(1, 20))
    rows = draw(st.integers(1, 5))
    values = draw(st.lists(st.integers(-3, 3), min_size=rows * columns, max_size=rows * columns))
    return pattern, torch.tensor(values).reshape(rows, columns).to(draw(st.sampled_from(FLOATS)))


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(scored_patterns())
def test_a_mask_has_exactly_the_requested_zeros_at_the_smallest_scores_and_ties_go_to_the_lowest_index(case):
    pattern, scores = case
    mask = Pattern.parse(*pattern).mask(scores)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, reference.mask(scores, pattern))
    if pattern[1] == "row":  # many rows may be chosen from in another way
        assert torch.equal(Pattern.parse(*pattern).mask(scores.repeat(MANY, 1)), mask.repeat(MANY, 1))
    Pattern.parse(*pattern).check_mask(mask, "layer")


@pytest.mark.parametrize("value, granularity", [(0.9, "row"), (0.9, "matrix"), ("2:4", "row")])
def test_scores_cast_to_half_precision_tie_but_the_count_stays_exact(value, granularity):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20, 400, generator=generator).add(1).bfloat16()
    pattern = Pattern.parse(value, granularity)
    assert len(scores.unique()) < 200  # thresholding with <= would prune too many
    for cast in (scores, scores.float()):
        assert int((~pattern.mask(cast)).sum()) == (4000 if pattern.group else 7200)
    assert torch.equal(pattern.mask(scores), pattern.mask(scores.float()))


@pytest.mark.parametrize("rows", [1, MANY])
def test_ties_are_pruned_from_the_first_index_on(rows):
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0, -0.0]]).repeat(rows, 1)
    assert smallest(scores, 1).int().tolist() == rows * [[0, 0, 0, 0, 1, 0]]  # −0 equals 0
    assert smallest(scores, 4).int().tolist() == rows * [[0, 1, 1, 0, 1, 1]]
    assert smallest(scores, 0).int().tolist() == rows * [[0, 0, 0, 0, 0, 0]]
    assert smallest(scores, 6).int().tolist() == rows * [[1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("rows", [1, MANY])
def test_infinite_scores_are_pruned_last(rows):
    scores = torch.tensor([[float("inf"), 1.0, float("inf"), 2.0]]).repeat(rows, 1)
    assert Pattern.parse(0.75).mask(scores).int().tolist() == rows * [[0, 0, 1, 0]]


def test_groups_are_neighbours_along_the_input():
    scores = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7], [7.0, 6, 5, 4, 3, 2, 1, 0]])
    expected = [[0, 0, 1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 1, 0, 0]]
    assert Pattern.parse("2:4").mask(scores).int().tolist() == expected


def test_the_granularity_decides_where_the_fraction_is_counted():
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert Pattern.parse(0.5, "row").mask(scores).int().tolist() == [[0, 1], [0, 1]]
    assert Pattern.parse(0.5, "matrix").mask(scores).int().tolist() == [[0, 0], [1, 1]]


def test_nan_scores_are_refused():
    with pytest.raises(GrampruneError) as error:
        Pattern.parse(0.5).mask(torch.tensor([[1.0, float("nan")]]))
    assert_sentence(error, "NaN")


def test_patterns_are_read_and_shown_as_they_are_written():
    shown = {Pattern.parse(*pattern).slug: str(Pattern.parse(*pattern)) for pattern in PATTERNS}
    assert shown == {
        "0.5_row": "0.5",
        "0.5_matrix": "0.5",
        "0.7_row": "0.7",
        "2of4": "2:4",
        "1of4": "1:4",
        "4of8": "4:8",
    }
    assert Pattern.parse("0.5") == Pattern.parse(0.5)
    assert Pattern.parse("1:4").sparsity == 0.75


@pytest.mark.parametrize(
    "value",
    [
        *(0, 1, 1.0, -0.5, 50, float("nan"), float("inf"), 10**400, 1e-400, np.float32(1), True, None),
        *("half", "", "nan", "4:4", "0:4", "5:4", "2:", ":4", "2:4:8", "-2:4", "2 : 4", "2.0:4", "2:4 "),
    ],
)
def test_a_value_that_is_no_pattern_is_refused_in_one_sentence(value):
    with pytest.raises(GrampruneError) as error:
        Pattern.parse(value)
    assert_sentence(error, "sparsity ", repr(value) if len(repr(value)) < 60 else "of type int", "2:4")


@pytest.mark.parametrize("value", [[0.5], (2, 4), b"0.5", 0.5j, np.array(0.5), np.full((9, 9), 0.5), torch.tensor(0.5)])
def test_a_value_of_a_type_that_is_no_number_is_refused_by_its_type(value):
    with pytest.raises(GrampruneError) as error:
        Pattern.parse(value)
    assert_sentence(error, type(value).__name__ if not isinstance(value, torch.Tensor) else "torch.float32 ()", "2:4")


@pytest.mark.parametrize("granularity", ["column", "group", "", None, 0, ["row"]])
def test_an_unknown_granularity_is_refused_in_one_sentence(granularity):
    with pytest.raises(GrampruneError) as error:
        Pattern.parse(0.5, granularity)
    assert_sentence(error, "granularity ", "row, matrix")


@pytest.mark.parametrize("granularity", ["matrix", "column", None])
def test_groups_with_another_granularity_are_refused_in_one_sentence(granularity):
    assert Pattern.parse("2:4", "row") == Pattern.parse("2:4", "group") == Pattern.parse("2:4")
    with pytest.raises(GrampruneError) as error:
        Pattern.parse("2:4", granularity)
    assert_sentence(error, repr(granularity), "'2:4'", "leave granularity out")


def test_a_group_that_does_not_divide_the_inputs_is_refused_in_one_sentence():
    Pattern.parse(0.5).check(10, "block 3 q_proj")
    with pytest.raises(GrampruneError) as error:
        Pattern.parse("2:4").check(10, "block 3 q_proj")
    assert_sentence(error, "block 3 q_proj", "10", "2:4")


@pytest.mark.parametrize("granularity, rows, columns", [("row", 6, 2), ("row", 1, 4096), ("matrix", 7, 53248)])
def test_a_sparsity_that_prunes_nothing_or_all_is_refused_with_the_least_and_the_most_that_can_be(
    granularity, rows, columns
):
    for value, words in ((1e-9, "prunes none of the"), (1 - 1e-9, "prunes all of the")):
        with pytest.raises(GrampruneError) as error:
            Pattern.parse(value, granularity).check(columns, "block 3 q_proj", rows)
        assert_sentence(error, "block 3 q_proj", words, value)
        least, most = map(float, re.search(r"between (\S+) and (\S+), or", str(error.value)).groups())
        weights = columns if granularity == "row" else rows * columns
        for possible, pruned in ((least, 1), (most, weights - 1)):
            pattern = Pattern.parse(possible, granularity)
            pattern.check(columns, "block 3 q_proj", rows)
            assert pattern.pruned_per_choice(weights) == pruned


def test_what_a_matrix_loses_is_looked_at_where_its_rows_are_known():
    Pattern.parse(0.01, "matrix").check(4, "block 3 q_proj")
    Pattern.parse("2:4").check(4, "block 3 q_proj", 1)
    with pytest.raises(GrampruneError) as error:
        Pattern.parse(0.01, "matrix").check(4, "block 3 q_proj", 6)
    assert_sentence(error, "block 3 q_proj", "none of the 24 weights of the matrix", "0.0416667")
    with pytest.raises(GrampruneError) as error:
        Pattern.parse(0.9).check(1, "block 3 q_proj")
    assert_sentence(error, "all of the 1 weights of a row; exclude this linear")


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: Pattern.parse(*pattern).slug)
def test_a_mask_with_one_zero_too_many_is_recognised(pattern):
    pattern = Pattern.parse(*pattern)
    mask = pattern.mask(torch.rand(4, 16, generator=torch.Generator().manual_seed(0)))
    pattern.check_mask(mask, "layer")
    mask[2] &= mask[2].cumsum(0) > 1  # the first kept weight of a row
    with pytest.raises(GrampruneError) as error:
        pattern.check_mask(mask, "block 3 q_proj")
    assert_sentence(error, "block 3 q_proj")
