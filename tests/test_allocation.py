"""Allocation of sparsity: the published formulas written out in float64, brute force, and what must hold of any."""

import itertools

import pytest
import torch
from problems import STRUCTURES, assert_sentence, problem

from gramprune import Gram, GrampruneError, Pattern
from gramprune.pruning import allocation
from gramprune.pruning.allocation import Linear, allocate, error

pytestmark = pytest.mark.bits

BLOCKS = ["well_conditioned", "ties", "dead_inputs", "rank_deficient"]


def linears(*structures: str, sparsity: float = 0.6, granularity: str = "matrix", each: int = 1, dtype=torch.float64):
    """A block per structure, each with as many linears."""
    for block, structure in enumerate(structures):
        for seed in range(each):
            p = problem(structure, dtype, seed)
            yield Linear(block, f"linear{seed}", p.weight, p.gram, Pattern.parse(sparsity, granularity))


def zeros(found: dict, members: list[Linear]) -> float:
    return sum(found[each.block, each.name] * each.weight.numel() for each in members)


def dlp(members: list[Linear], alpha: float) -> dict[tuple[int, str], float]:
    """arXiv 2505.23807 as its code has it: sparsities of blocks of equal sizes, before they are whole numbers."""
    scores: dict[int, list[float]] = {}
    for each in members:
        norms = each.gram.double().diagonal().sqrt()
        scores.setdefault(each.block, []).extend((each.weight.double().abs() * norms).flatten().tolist())
    medians = [sorted(values)[(len(values) - 1) // 2] for values in scores.values()]
    importance = [1 - median / sum(medians) for median in medians]
    low, high = min(importance), max(importance)
    density = [(each - low) / (high - low) * 2 * alpha for each in importance]
    mean = sum(density) / len(density)
    wanted = members[0].pattern.sparsity
    return {(each.block, each.name): 1 - (density[each.block] - mean + 1 - wanted) for each in members}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("sparsity, alpha", [(0.5, 0.04), (0.6, 0.1), (0.7, 0.15)])
def test_dlp_is_the_published_formula(sparsity, alpha, each, dtype):
    """Its default range too, which the authors have at these three sparsities."""
    members = [*linears(*BLOCKS, sparsity=sparsity, each=each, dtype=dtype)]
    expected, found = dlp(members, alpha), allocate(members, "dlp")
    assert found == allocate(members, "dlp", alpha=alpha) and found.keys() == expected.keys()
    for each in members:
        key = each.block, each.name
        assert abs(found[key] - expected[key]) <= 1 / each.weight.numel()


def test_between_the_authors_sparsities_the_range_is_between_theirs():
    members = [*linears(*BLOCKS, sparsity=0.65)]
    assert allocate(members, "dlp") == allocate(members, "dlp", alpha=0.125)


@pytest.mark.parametrize("method", allocation.names())
@pytest.mark.parametrize("granularity", ["row", "matrix"])
@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.7])
@pytest.mark.parametrize("alpha", [None, 0.05, 0.4, 3.0])
def test_the_zeros_are_those_that_are_wanted_and_neither_none_nor_all_of_a_linear(method, granularity, sparsity, alpha):
    """Whole numbers per row or matrix, in linears of several sizes, though the range leads out of (0, 1)."""
    structures = [name for name in STRUCTURES if granularity == "matrix" or name != "one_column"]
    members = [*linears(*structures, "well_conditioned", sparsity=sparsity, granularity=granularity, each=2)]
    found = allocate(members, method, alpha=alpha)
    last = 1 if granularity == "matrix" else members[-1].weight.shape[0]
    total = sum(each.weight.numel() for each in members)
    assert abs(zeros(found, members) - sparsity * total) <= last / 2 + 1e-6
    for each in members:
        share, choices = found[each.block, each.name], each.weight.shape[1]
        choices *= each.weight.shape[0] if granularity == "matrix" else 1
        assert share * choices == pytest.approx(round(share * choices), abs=1e-9)
        assert 1 <= round(share * choices) <= choices - 1
        Pattern.parse(share, granularity).check(each.weight.shape[1], "it", each.weight.shape[0])


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_dlp_moves_all_that_is_not_clamped_by_the_same(alpha):
    """So the mean stays where a density would be below 0 or above 1."""
    members = [*linears(*BLOCKS, sparsity=0.6)]
    found, free = allocate(members, "dlp", alpha=alpha), dlp(members, alpha)
    moved = {}
    for each in members:
        key, size = (each.block, each.name), each.weight.numel()
        if 1.5 / size < found[key] < 1 - 1.5 / size:
            moved[key] = found[key] - free[key]
    assert 0 < len(moved) < len(members) and max(moved.values()) - min(moved.values()) <= 2 / min(
        each.weight.numel() for each in members
    )


@pytest.mark.parametrize("method", allocation.names())
def test_linears_keep_what_they_differ_in(method):
    """Where the fractions without an allocation differ, those with it differ likewise, and their mean is the same."""
    members = [*linears("well_conditioned", "ties", sparsity=0.5, each=2)]
    members[1], members[3] = (members[place]._replace(pattern=Pattern.parse(0.8, "matrix")) for place in (1, 3))
    found = allocate(members, method, alpha=0.1)
    for block in (0, 1):
        assert found[block, "linear1"] - found[block, "linear0"] == pytest.approx(0.3, abs=1.5 / 96)
    assert abs(zeros(found, members) - 0.65 * 4 * 96) <= 0.5 + 1e-6
    assert found[0, "linear0"] != found[1, "linear0"]


def ranked(each: Linear, damping: float = 0.01) -> torch.Tensor:
    """(choices, candidates): relative errors of single zeros, `w² / [H⁻¹]_jj / ‖XWᵀ‖²`, in ascending order."""
    W, G = each.weight.double(), each.gram.double()
    n, alive = G.diagonal().sqrt(), G.diagonal() > 0
    scale = torch.where(alive, n, torch.ones_like(n))
    mean = float(G.diagonal()[alive].mean())
    ridge = torch.tensor([damping * mean / float(d) if d > 0 else damping for d in G.diagonal()])
    inverse = torch.linalg.inv(G / scale[:, None] / scale + torch.diag(ridge.double()))
    scores = torch.zeros_like(W)
    for i, row in enumerate(W.tolist()):
        for j, w in enumerate(row):
            scores[i, j] = w**2 * float(G[j, j]) / float(inverse[j, j])
    rows = scores if each.pattern.granularity == "row" else scores.reshape(1, -1)
    return rows.sort(dim=1).values / (sum(float(row @ G @ row) for row in W) or 1.0)


@pytest.mark.parametrize("granularity", ["row", "matrix"])
@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("structures", [*itertools.combinations([*BLOCKS, "ill_conditioned"], 3)])
def test_no_division_among_blocks_has_less_error_than_that_of_error(structures, each, granularity):
    """The sum over all zeros, as often as blocks see them; against all divisions in steps of a percent.

    A zero that is wanted in part counts in part.
    """
    members = [*linears(*structures, sparsity=0.6, granularity=granularity, each=each)]
    errors = [ranked(member) for member in members]

    def total(moves) -> float:
        found = 0.0
        for member, rows in zip(members, errors, strict=True):
            zeros = (0.6 + moves[member.block]) * rows.shape[1]
            shares = (zeros - torch.arange(rows.shape[1])).clamp(0, 1).double()
            found += (3 - member.block) * float((rows @ shares).sum())
        return found

    prepared = [member._replace(gram=Gram(member.gram)) for member in members]
    kept = [error.look([member for member in prepared if member.block == block]) for block in range(3)]
    found = error.tilts(kept, 0.1).tolist()
    assert sum(found) == pytest.approx(0, abs=1e-9) and max(map(abs, found)) <= 0.1 + 1e-9
    steps = [place / 100 for place in range(-10, 11)]
    others = [(a, b, -a - b) for a in steps for b in steps if abs(a + b) < 0.1001]
    assert total(found) <= min(map(total, others)) * (1 + 1e-3)


@pytest.mark.parametrize("granularity", ["row", "matrix"])
def test_dlp_leaves_one_block_and_blocks_that_are_alike_as_they_were(granularity):
    for structures in (["well_conditioned"], ["well_conditioned"] * 3):
        found = allocate(linears(*structures, sparsity=0.625, granularity=granularity), "dlp")
        assert set(found.values()) == {0.625}


def test_nothing_is_allocated_where_nothing_has_a_fraction():
    assert allocate([], "dlp") == {}


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: allocate(linears("ties"), "dpl"), ["'dpl'", "did you mean 'dlp'?"]),
        (lambda: allocate(linears("ties"), "dlp", alpha=0.0), ["dlp", "alpha is 0"]),
        (lambda: allocate(linears("ties"), "dlp", alpha="x"), ["dlp", "'x'"]),
        (lambda: allocate(linears("ties", sparsity="2:4", granularity="row"), "dlp"), ["2:4", "fraction"]),
        (lambda: allocate(linears("ties", sparsity=0.001), "error"), ["0.001", "prunes none"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(call, words):
    with pytest.raises(GrampruneError) as caught:
        call()
    assert_sentence(caught, *words)
