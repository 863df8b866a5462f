"""Updates for a given mask that aim at the masked least squares: exact, MRP and conjugate gradients."""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DTYPES, PATTERNS, assert_near, assert_sentence, matrix, problem
from torch import Tensor

from gramprune import Gram, GrampruneError, Pattern, layer_error, update_weight
from gramprune.pruning import methods, numerics, updates
from gramprune.pruning.gram import ESCALATIONS
from gramprune.pruning.updates import exact

pytestmark = pytest.mark.bits

SLUG = {"ids": lambda pattern: Pattern.parse(*pattern).slug}
DAMPED = [("exact", {}), ("pcg", {}), ("mrp", {"solution": "S"}), ("mrp", {"solution": "M"})]


def update(p, mask: Tensor, method: str, **options) -> Tensor:
    return update_weight(p.weight, p.gram, mask, method, **options)[0]


def assert_near_scaled(p, found: Tensor, expected: Tensor) -> None:
    """Near in the coordinates in which all inputs have the norm 1."""
    scale = Gram(p.gram).scale
    assert_near(found * scale, expected * scale)


@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("exact"))
def test_exact_is_the_masked_least_squares_of_the_damped_problem(method, pattern, structure, dtype):
    p = problem(structure, dtype)
    mask = reference.wanda(p.weight, p.gram, pattern)
    for damping in (0.01, 0.3):
        new, stats = update_weight(p.weight, p.gram, mask, method, damping=damping)
        assert new.dtype == dtype and not new[~mask].any() and stats == {"damping": damping}
        assert_near_scaled(p, new, reference.least_squares(p.weight, reference.ridge(p.gram, damping), mask))


@pytest.mark.parametrize("solution", ["S", "M"])
@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("mrp"))
def test_mrp_is_the_printed_formula(method, pattern, structure, dtype, solution):
    """arXiv 2410.15567, with explicit inverses; and solution M is the optimum of the evenly damped problem."""
    p = problem(structure, dtype)
    mask = reference.wanda(p.weight, p.gram, pattern)
    new, stats = update_weight(p.weight, p.gram, mask, method, solution=solution)
    assert new.dtype == dtype and not new[~mask].any() and stats == {"damping": 0.01}
    assert_near_scaled(p, new, reference.mrp_update(p.weight, p.gram, mask, solution))
    if solution == "M":
        assert_near_scaled(p, new, reference.least_squares(p.weight, reference.ridge(p.gram, 0.01, even=True), mask))


@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("pcg"))
def test_pcg_is_the_reference_step_by_step_and_ends_in_the_optimum(method, pattern, structure, dtype):
    """ALPS, arXiv 2406.07831: conjugate gradients on every row's kept weights, all rows at once."""
    p = problem(structure, dtype)
    mask = reference.wanda(p.weight, p.gram, pattern)
    for iterations in (1, 2, 3):
        new, stats = update_weight(p.weight, p.gram, mask, method, iterations=iterations, tolerance=0)
        assert new.dtype == dtype and not new[~mask].any() and stats["iterations"] <= iterations
        assert_near_scaled(p, new, reference.pcg(p.weight, p.gram, mask, iterations))
    optimum = reference.least_squares(p.weight, reference.ridge(p.gram, 0.01), mask)
    assert_near_scaled(p, update(p, mask, method, iterations=100, tolerance=0), optimum)


def test_pcg_stops_when_all_rows_have_converged_and_those_that_have_stand_still():
    p = problem("well_conditioned")
    mask = reference.wanda(p.weight, p.gram, (0.5, "row"))
    mask[0] = True  # has nothing to make up for
    tolerances = (1.0, 1e-1, 1e-3, 1e-6)
    steps = [update_weight(p.weight, p.gram, mask, "pcg", tolerance=t)[1]["iterations"] for t in tolerances]
    assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] < 16
    assert_near(update(p, mask, "pcg")[0], p.weight[0])


@pytest.mark.parametrize("pattern", PATTERNS, **SLUG)
def test_exact_and_solution_m_of_mrp_agree_to_rounding(pattern):
    """arXiv 2410.15567: for a row's whole P the compensation is the masked least squares."""
    p = problem("well_conditioned")
    mask = reference.wanda(p.weight, p.gram, pattern)
    undamped = reference.least_squares(p.weight, p.gram, mask)
    for method in ("exact", "mrp"):
        assert_near(update(p, mask, method, damping=0), undamped)


def test_solution_s_of_mrp_is_exact_where_a_row_loses_one_weight():
    """arXiv 2410.15567: the classic OBS; with more of them it is not."""
    p = problem("well_conditioned")
    for count, exactly in ((1, True), (2, False)):
        mask = torch.arange(16).expand(6, 16) >= count
        distance = (update(p, mask, "mrp", solution="S") - update(p, mask, "mrp", solution="M")).abs().max()
        assert (distance < 1e-12) == exactly


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_two_forms_of_exact_agree_for_rows_that_keep_all_some_and_nothing(dtype, even):
    p = problem("well_conditioned", dtype)
    mask = reference.wanda(p.weight, p.gram, (0.5, "matrix"))
    mask[0], mask[1] = True, False
    assert len(mask.sum(dim=1).unique()) > 3  # systems of several sizes
    expected = reference.least_squares(p.weight, reference.ridge(p.gram, 0.01, even), mask)
    for always_pruned in (False, True):
        new, _ = exact.solve(p.weight, Gram(p.gram), mask, 0.01, even, always_pruned)
        assert_near(new, expected)
        assert not new[1].any()


@pytest.mark.parametrize("always_pruned", [False, True])
def test_systems_that_are_padded_for_the_caches_sake_give_the_same_optimum(always_pruned):
    generator = torch.Generator().manual_seed(0)
    columns = 2 * exact.ALIASED  # 2:4 keeps half of them
    weight, inputs = (torch.randn(n, columns, generator=generator, dtype=torch.float64) for n in (3, 2 * columns))
    gram = inputs.T @ inputs
    mask = reference.wanda(weight, gram, ("2:4", "row"))
    new, _ = exact.solve(weight, Gram(gram), mask, 0.01, always_pruned=always_pruned)
    assert_near(new, reference.least_squares(weight, reference.ridge(gram, 0.01), mask))


@pytest.mark.parametrize("pattern", [(0.5, "matrix"), (0.7, "row"), ("1:4", "row")], **SLUG)
@pytest.mark.parametrize("options", [{"method": "exact"}, {"method": "mrp", "solution": "M"}], ids=["exact", "mrp"])
def test_the_length_of_the_batches_does_not_change_the_result(options, pattern, monkeypatch):
    p = problem("well_conditioned")
    mask = reference.wanda(p.weight, p.gram, pattern)
    expected = update(p, mask, **options)
    for elements in (1, 300, 700):
        monkeypatch.setattr(numerics, "BATCH", elements)
        assert_near(update(p, mask, **options), expected)


@pytest.mark.parametrize("other", sorted({*methods.names(updates)} - {"exact"}))
@pytest.mark.parametrize("pattern", PATTERNS, **SLUG)
def test_no_update_has_less_error_than_exact(pattern, other):
    """arXiv 2410.15567: the yardstick. The error that exact minimises is the damped one, so that is compared."""
    for structure in ("well_conditioned", "rank_deficient", "dead_inputs", "ties", "one_token", "ill_conditioned"):
        p = problem(structure)
        mask = reference.wanda(p.weight, p.gram, pattern)
        H = reference.ridge(p.gram, 0.01)
        found, best = (reference.damped_error(p.weight, update(p, mask, m), H) for m in (other, "exact"))
        assert (best <= found * (1 + 1e-9)).all(), structure


@st.composite
def small_problems(draw) -> tuple[Tensor, Tensor, Tensor, float]:
    """Weight, Gram matrix of any rank, mask of any counts, damping."""
    rows, columns, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    inputs = torch.randn(tokens, columns, generator=generator).double()
    inputs *= 10.0 ** torch.randint(-2, 3, (columns,), generator=generator)
    mask = torch.rand(rows, columns, generator=generator) < draw(st.floats(0, 1))
    return torch.randn(rows, columns, generator=generator).double(), inputs.T @ inputs, mask, draw(st.floats(1e-4, 1))


@settings(max_examples=60, deadline=None)
@given(small_problems(), st.integers(1, 20))
def test_exact_and_pcg_never_have_more_error_than_no_update(case, iterations):
    """Nor with damping: without an update the pruned weights' share of it is the least that there can be."""
    weight, gram, mask, damping = case
    none = layer_error(weight, weight * mask, gram)
    for method, options in (("exact", {}), ("mrp", {}), ("pcg", {"iterations": iterations})):
        new, _ = update_weight(weight, gram, mask, method, damping=damping, **options)
        assert layer_error(weight, new, gram) <= none * (1 + 1e-9) + 1e-12 * layer_error(weight, 0 * weight, gram)


@pytest.mark.parametrize("method, options", DAMPED, ids=["exact", "pcg", "mrp S", "mrp M"])
def test_a_damping_that_is_too_small_is_raised_and_recorded_and_the_method_stays(method, options, caplog):
    """One token of ±1, rounded to below rank one: zero pivots might pass, as a processor's kernel rounds them."""
    p = problem("one_token")
    inputs = p.inputs.sign()
    gram = (inputs.T @ inputs).mul(1 + 1e-7).fill_diagonal_(1)
    mask = reference.wanda(p.weight, p.gram, (0.5, "row"))
    new, stats = update_weight(p.weight, gram, mask, method, damping=0, **options)
    expected, _ = update_weight(p.weight, gram, mask, method, damping=1e-6, **options)
    assert stats["damping"] == 1e-6 and torch.equal(new, expected)
    assert "not positive definite with damping 0" in caplog.text


def test_a_rows_system_that_is_not_positive_definite_raises_the_damping_of_all_rows(monkeypatch):
    """As rounding may make one, though the whole matrix was positive definite."""
    p = problem("well_conditioned")
    mask = reference.wanda(p.weight, p.gram, (0.5, "row"))
    expected, solve, refusals = update(p, mask, "exact", damping=0.1), exact._solve, []

    def refuse(*system: Tensor) -> Tensor | None:
        return None if refusals and refusals.pop() else solve(*system)

    monkeypatch.setattr(exact, "_solve", refuse)
    refusals[:] = [True] * 2
    new, stats = update_weight(p.weight, p.gram, mask, "exact", damping=0.001)
    assert stats == {"damping": 0.1} and torch.equal(new, expected)
    refusals[:] = [True] * (ESCALATIONS + 1)
    with pytest.raises(GrampruneError) as error:
        update_weight(p.weight, Gram(p.gram, "block 3 q_proj"), mask, "exact", damping=0.001)
    assert_sentence(error, "block 3 q_proj", "not positive definite", "10")


@pytest.mark.parametrize("method, options", DAMPED, ids=["exact", "pcg", "mrp S", "mrp M"])
def test_a_gram_matrix_that_no_damping_mends_is_an_error(method, options):
    p = problem("well_conditioned")
    broken = 2 * torch.eye(16, dtype=torch.float64) - 1  # any two inputs can be like that, all of them cannot
    with pytest.raises(GrampruneError) as error:
        update_weight(p.weight, Gram(broken, "block 3 q_proj"), p.weight > 0, method, damping=1e-3, **options)
    assert_sentence(error, "block 3 q_proj", "not positive definite")


@pytest.mark.parametrize(
    "method, options, words",
    [
        ("pcg", {"iterations": 0}, ["pcg", "iterations", "0"]),
        ("pcg", {"tolerance": -1}, ["pcg", "tolerance", "-1"]),
        ("mrp", {"solution": "m"}, ["mrp", "'m'", "did you mean 'M'?"]),
        *((method, {**options, "damping": -1}, ["damping", "0 or more", "-1"]) for method, options in DAMPED),
    ],
)
def test_options_out_of_range_are_refused_in_one_sentence(method, options, words):
    p = problem("well_conditioned")
    with pytest.raises(GrampruneError) as error:
        update_weight(p.weight, Gram(p.gram, "block 3 q_proj"), p.weight > 0, method, **options)
    assert_sentence(error, "block 3 q_proj", *words)
