"""RIA, SparseGPT, MRP and ALPS against their published formulas, written out, and what their papers say of them."""

from itertools import combinations

import pytest
import reference
import torch
from problems import (
    PATTERNS,
    assert_near,
    assert_sentence,
    matrix,
    problem,
    tolerance,
)
from torch import Tensor

from gramprune import Gram, GrampruneError, Pattern, prune_weight, select_mask, update_weight
from gramprune.pruning.masks.mrp import LIMIT
from gramprune.pruning.updates.pcg import conjugate_gradients

pytestmark = pytest.mark.bits

SLUG = {"ids": lambda pattern: Pattern.parse(*pattern).slug}
GROUPS = ["2:4", "1:4", "4:8"]
NEGLIGIBLE = 1e-13  # damping


def assert_prunes_the_smallest(mask: Tensor, scores: Tensor, pattern: tuple, exact: bool) -> None:
    """The mask is that of these scores; if not `exact`, equal and nearly equal ones may stand for each other."""
    Pattern.parse(*pattern).check_mask(mask, "the layer")
    expected = reference.mask(scores, pattern)
    if exact:
        assert torch.equal(mask, expected)
    for choice in reference.choices(scores.shape, pattern):
        found, best = (sum(float(scores[place]) for place in choice if not m[place]) for m in (mask, expected))
        assert found <= best + tolerance(torch.float32) * float(scores.max())


@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("ria"))
def test_ria_is_the_reference(method, pattern, structure, dtype):
    """Zhang et al., ICLR 2024."""
    p = problem(structure, dtype)
    for power in (0.5, 1.0):
        mask = select_mask(p.weight, p.gram, Pattern.parse(*pattern), method, power=power)
        exact = dtype == torch.float64 and structure != "ties"
        assert_prunes_the_smallest(mask, reference.ria(p.weight, p.gram, power), pattern, exact)


def test_ria_spares_a_row_and_a_column_of_small_weights_and_prunes_one_of_zeros():
    """Zhang et al., ICLR 2024: magnitudes, also with activations, empty whole channels; relative ones do not."""
    p = problem("well_conditioned")
    p.weight[2] *= 1e-3
    p.weight[:, 5] *= 1e-3
    p.weight[4] = 0
    pattern = Pattern.parse(0.5, "matrix")
    for method, emptied in (("magnitude", True), ("wanda", True), ("ria", False)):
        mask = select_mask(p.weight, p.gram, pattern, method)
        assert not mask[4].any()
        assert (not mask[2].any()) == (not mask[:, 5].any()) == emptied


@pytest.mark.parametrize("width", [128, 5, 6, 1])
@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("sparsegpt"))
def test_sparsegpt_is_the_reference(method, pattern, structure, dtype, width):
    """arXiv 2301.00774, in blocks that divide the inputs and blocks that do not.

    Exact in float64. In float32 scores that nearly tie may be chosen otherwise, and in the structure of ties
    everywhere: there the weights must be those of the mask, and the mask's error that of the reference.
    """
    p = problem(structure, dtype)
    mask, new, stats = prune_weight(p.weight, p.gram, Pattern.parse(*pattern), method, width=width)
    expected_mask, expected = reference.sparsegpt(p.weight, p.gram, pattern, width=width)
    Pattern.parse(*pattern).check_mask(mask, structure)
    assert new.dtype == dtype and not new[~mask].any() and stats == {"damping": 0.01}
    if dtype == torch.float64 and structure != "ties":
        assert torch.equal(mask, expected_mask)
    assert_near(new, reference.sparsegpt(p.weight, p.gram, None, given=mask)[1])
    found, wanted = (reference.layer_error(p.weight, weight, p.inputs) for weight in (new, expected))
    output = reference.layer_error(p.weight, torch.zeros_like(p.weight), p.inputs)
    assert abs(found - wanted) <= (0.1 if structure == "ties" else tolerance(dtype)) * output


@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("sparsegpt"))
def test_the_sweep_for_a_given_mask_is_the_reference_for_every_width(method, pattern, structure, dtype):
    """arXiv 2301.00774: blocks with lazy updates change the order of the sums, not the sums."""
    p = problem(structure, dtype)
    mask = reference.wanda(p.weight, p.gram, pattern)
    expected = reference.sparsegpt(p.weight, p.gram, None, given=mask)[1]
    for width in (128, 16, 5, 1):
        new, _ = update_weight(p.weight, p.gram, mask, method, width=width)
        assert new.dtype == dtype and not new[~mask].any()
        assert_near(new * Gram(p.gram).scale, expected * Gram(p.gram).scale)


@pytest.mark.parametrize("value", GROUPS)
def test_sparsegpt_chooses_a_group_when_the_sweep_reaches_it_whatever_the_width(value):
    """arXiv 2301.00774, section 3.3."""
    p, pattern = problem("well_conditioned"), Pattern.parse(value)
    masks = [select_mask(p.weight, p.gram, pattern, "sparsegpt", width=width) for width in (128, 6, 1)]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])


def test_the_sweep_is_exact_where_the_pruned_weights_are_left_of_the_kept_ones():
    """arXiv 2301.00774: OBS for one weight after the other; only a settled weight's help is missing."""
    p = problem("well_conditioned")
    mask = torch.ones_like(p.weight, dtype=torch.bool)
    mask[:, :7] = False
    errors = []
    for given in (mask, mask.flip(1)):
        new, _ = update_weight(p.weight, p.gram, given, "sparsegpt", damping=NEGLIGIBLE, width=3)
        optimum = reference.least_squares(p.weight, p.gram, given)
        errors.append(float((new - optimum).abs().max()))
    assert errors[0] < 1e-10 < 0.01 < errors[1]


@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("mrp"))
def test_solution_s_of_mrp_is_the_reference(method, pattern, structure, dtype):
    """arXiv 2410.15567: the classic OBS score."""
    p = problem(structure, dtype)
    mask = select_mask(p.weight, p.gram, Pattern.parse(*pattern), method, solution="S")
    exact = dtype == torch.float64 and structure != "ties"
    assert_prunes_the_smallest(mask, reference.mrp_single(p.weight, p.gram), pattern, exact)
    if not isinstance(pattern[0], str):
        assert torch.equal(mask, select_mask(p.weight, p.gram, Pattern.parse(*pattern), method))


@pytest.mark.parametrize(
    "method, pattern, structure, dtype", [case for case in matrix("mrp") if isinstance(case.values[1][0], str)]
)
def test_solution_m_of_mrp_has_the_smallest_loss_of_all_patterns(method, pattern, structure, dtype):
    """arXiv 2410.15567, Eq. 12, in every row and group; and so no more than solution S or any other mask."""
    p, parsed = problem(structure, dtype), Pattern.parse(*pattern)
    mask = select_mask(p.weight, p.gram, parsed, method)
    parsed.check_mask(mask, structure)
    for (i, g), losses in reference.mrp_losses(p.weight, p.gram, pattern[0]).items():
        pruned = tuple(g + j for j, kept in enumerate(mask[i, g : g + parsed.group].tolist()) if not kept)
        if dtype == torch.float64 and structure != "ties":
            assert pruned == min(losses, key=losses.get)
        assert losses[pruned] <= min(losses.values()) + tolerance(dtype) * max(losses.values())


@pytest.mark.parametrize("value", GROUPS)
def test_mrp_prunes_what_the_exact_update_can_best_make_up_for(value):
    """arXiv 2410.15567: with a negligible damping the losses are half the errors after the best update."""
    p, pattern = problem("well_conditioned"), Pattern.parse(value)
    mask = select_mask(p.weight, p.gram, pattern, "mrp", damping=NEGLIGIBLE)
    losses = reference.mrp_losses(p.weight, p.gram, value, damping=NEGLIGIBLE)[0, 0]
    errors = {}
    for P in combinations(range(pattern.group), pattern.group - pattern.keep):
        given = torch.ones_like(p.weight[:1], dtype=torch.bool)
        given[0, list(P)] = False
        errors[P] = reference.layer_error(p.weight[:1], reference.least_squares(p.weight[:1], p.gram, given), p.inputs)
        assert losses[P] == pytest.approx(errors[P] / 2)
    assert tuple((~mask[0, : pattern.group]).nonzero().flatten().tolist()) == min(errors, key=errors.get)


def ten_conjugate_gradients(p, mask):
    """What ALPS ends with, for a mask; conjugate gradients have tests of their own."""
    gram = Gram(p.gram)
    dense, system = p.weight * gram.norms, gram.damped(0.01, even=True)[0]
    new, _ = conjugate_gradients(dense, system, mask, dense * mask, 10, 1e-4)
    return gram.unscaled(new, p.weight, mask)


@pytest.mark.parametrize("method, pattern, structure, dtype", matrix("alps"))
def test_alps_is_the_reference(method, pattern, structure, dtype):
    """arXiv 2406.07831, step by step, then conjugate gradients.

    Exact in float64 without ties. Elsewhere a near tie may end the steps sooner or later, in another mask: its error
    is compared, in units of the dense output.
    """
    p = problem(structure, dtype)
    mask, new, stats = prune_weight(p.weight, p.gram, Pattern.parse(*pattern), method)
    expected, steps, rho = reference.alps(p.weight, p.gram, pattern)
    Pattern.parse(*pattern).check_mask(mask, structure)
    assert torch.equal(new, ten_conjugate_gradients(p, mask))
    assert not new[~mask].any() and stats["damping"] == 0.01
    if dtype == torch.float64 and structure != "ties":
        assert torch.equal(mask, expected)
        assert stats["iterations"] == steps and stats["rho"] == pytest.approx(rho)
    wanted = ten_conjugate_gradients(p, expected)
    found, wanted = (reference.layer_error(p.weight, weight, p.inputs) for weight in (new, wanted))
    output = reference.layer_error(p.weight, torch.zeros_like(p.weight), p.inputs)
    assert abs(found - wanted) <= (0.05 if structure == "ties" else tolerance(dtype)) * output


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("value", [0.5, 0.7, "2:4"])
def test_alps_stops_by_itself_with_less_error_than_the_other_joint_methods(value, seed):
    """arXiv 2406.07831: ρ grows until the mask stands still; less error than SparseGPT."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(256, 64, generator=generator).double() @ torch.randn(64, 64, generator=generator).double()
    weight, gram = torch.randn(32, 64, generator=generator).double(), inputs.T @ inputs
    errors = {}
    for method in ("alps", "admm", "sparsegpt"):
        _, new, stats = prune_weight(weight, gram, Pattern.parse(value), method)
        errors[method] = reference.layer_error(weight, new, inputs)
        if method == "alps":
            assert stats["iterations"] < 300 and stats["iterations"] % 3 == 0 and stats["rho"] > 0.1
    assert errors["alps"] < errors["admm"] < errors["sparsegpt"]


def test_alps_with_few_iterations_ends_in_an_exact_mask_and_says_how_many_it_did():
    p = problem("well_conditioned")
    for iterations in (1, 2, 3, 4):
        mask, _, stats = prune_weight(p.weight, p.gram, Pattern.parse("2:4"), "alps", iterations=iterations)
        Pattern.parse("2:4").check_mask(mask, "the layer")
        assert torch.equal(mask, reference.alps(p.weight, p.gram, ("2:4", "row"), iterations)[0])
        assert stats["iterations"] == iterations


def test_the_inverses_of_alps_are_not_kept():
    p = problem("well_conditioned")
    gram = Gram(p.gram)
    prune_weight(p.weight, gram, Pattern.parse(0.5), "alps")
    assert not any(key[0] == "inverse" for key in gram._kept)


@pytest.mark.parametrize("method", ["wanda", "admm", "sparsegpt", "mrp", "alps"])
@pytest.mark.parametrize("pattern", PATTERNS, **SLUG)
def test_a_mask_does_not_depend_on_the_units_of_the_inputs(pattern, method):
    """Of scores that are errors: X_j·c with W_j/c is the same layer. (The even damping is not; so none of it here.)"""
    p, pattern = problem("well_conditioned"), Pattern.parse(*pattern)
    units = 2.0 ** torch.randint(-3, 4, (16,), generator=torch.Generator().manual_seed(2)).double()
    options = {"damping": NEGLIGIBLE} if method in ("sparsegpt", "mrp", "alps") else {}
    expected = select_mask(p.weight, p.gram, pattern, method, **options)
    scaled = select_mask(p.weight / units, p.gram * units[:, None] * units, pattern, method, **options)
    assert torch.equal(scaled, expected)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda w, g: select_mask(w, g, Pattern.parse("2:4"), "mrp", solution="m"), ["'m'", "did you mean 'M'?"]),
        (lambda w, g: select_mask(w, g, Pattern.parse(0.5), "mrp", solution="M"), ["0.5", "no groups", "solution: S"]),
        (lambda w, g: select_mask(w, g, Pattern.parse("8:16"), "mrp"), ["8:16", "12870", LIMIT, "solution: S"]),
        (lambda w, g: select_mask(w, g, Pattern.parse(0.5), "mrp", damping=-1), ["mrp", "-1"]),
        (lambda w, g: prune_weight(w, g, Pattern.parse(0.5), "sparsegpt", width=0), ["sparsegpt", "width", "0"]),
        (lambda w, g: update_weight(w, g, w > 0, "sparsegpt", damping=-1), ["sparsegpt", "damping", "-1"]),
        (lambda w, g: prune_weight(w, g, Pattern.parse(0.5), "alps", iterations=0), ["alps", "iterations", "0"]),
        (lambda w, g: prune_weight(w, g, Pattern.parse(0.5), "alps", rho=0), ["alps", "rho", "0"]),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_sentence(call, words):
    p = problem("well_conditioned")
    with pytest.raises(GrampruneError) as error:
        call(p.weight, Gram(p.gram, "block 3 q_proj"))
    assert_sentence(error, "block 3 q_proj", *words)


def test_solution_s_of_mrp_prunes_groups_that_are_too_many_to_enumerate():
    p, pattern = problem("well_conditioned"), Pattern.parse("8:16")
    pattern.check_mask(select_mask(p.weight, p.gram, pattern, "mrp", solution="S"), "the layer")
