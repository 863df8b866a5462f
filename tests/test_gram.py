"""Gram matrices: sums over batches, scaling, inverses with recorded damping, and what is refused."""

import logging

import pytest
import reference
import torch
from problems import DEAD, DTYPES, STRUCTURES, assert_near, assert_sentence, problem, tolerance

from gramprune import Gram, GrampruneError, layer_error
from gramprune.pruning.gram import accumulate
from gramprune.pruning.updates import update_weight

pytestmark = pytest.mark.bits


@pytest.mark.parametrize("inputs", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("summed", DTYPES)
def test_accumulated_batches_are_the_gram_matrix_of_all_tokens(inputs, summed):
    X = torch.randn(6, 10, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(inputs)
    gram = torch.zeros(12, 12, dtype=summed)
    for batch in (X[:3], X[3:5], X[5]):  # (sequences, tokens, in), and (tokens, in)
        accumulate(gram, batch)
    all_tokens = X.reshape(-1, 12).double()
    assert_near(gram, all_tokens.T @ all_tokens)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_layer_error_is_the_distance_of_the_outputs(structure, dtype):
    p = problem(structure, dtype)
    new = p.weight.where(p.weight.abs() > 0.6, 0)
    expected = reference.layer_error(p.weight, new, p.inputs)
    for gram in (p.gram, Gram(p.gram)):
        assert layer_error(p.weight, new, gram) == pytest.approx(expected, rel=tolerance(dtype), abs=1e-30)
    assert layer_error(p.weight, p.weight, p.gram) == 0


def test_the_layer_error_of_half_precision_weights_is_that_of_their_values():
    weight, new, gram = torch.tensor([[256.0]]), torch.tensor([[0.5]]), torch.ones(1, 1)
    assert layer_error(weight.bfloat16(), new.bfloat16(), gram) == layer_error(weight, new, gram) == 255.5**2


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaled_has_unit_diagonal_and_zeros_at_dead_inputs(dtype):
    gram = Gram(problem("dead_inputs", dtype).gram)
    assert gram.dead.nonzero().flatten().tolist() == list(DEAD)
    expected = torch.ones(16, dtype=torch.float64)
    expected[list(DEAD)] = 0
    assert_near(gram.scaled().diagonal(), expected)
    assert not gram.scaled()[gram.dead].any() and not gram.scaled()[:, gram.dead].any()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_inverse_is_that_of_the_damped_and_shifted_matrix_and_is_made_once(structure):
    gram = Gram(problem(structure).gram)
    inverse, damping = gram.inverse(0.1, shift=1.0)
    identity = torch.eye(len(inverse), dtype=torch.float64)
    assert_near((gram.scaled() + 1.1 * identity) @ inverse, identity)
    assert damping == 0.1
    assert gram.inverse(0.1, shift=1.0)[0] is inverse
    assert gram.inverse(0.2, shift=1.0)[0] is not inverse


def indefinite(size: int) -> torch.Tensor:
    """No input is impossible beside another, all of them together are: the eigenvalues are 2 and 2 − size."""
    return 2 * torch.eye(size, dtype=torch.float64) - 1


def test_too_little_damping_grows_tenfold_and_is_recorded_and_logged(caplog):
    weight, mask = torch.ones(1, 40), torch.ones(1, 40).bool()
    with caplog.at_level(logging.WARNING):
        _, stats = update_weight(weight, Gram(indefinite(40), "block 3 q_proj"), mask, "admm")
    assert stats["damping"] == pytest.approx(100)  # of 0.1, 1, 10 and 100, with ρ = 1
    assert [record.getMessage().startswith("block 3 q_proj:") for record in caplog.records] == [True] * 3
    nearly = torch.tensor([[1.0, 1 + 3e-5], [1 + 3e-5, 1.0]], dtype=torch.float64)
    assert Gram(nearly).inverse(0.0)[1] == pytest.approx(1e-4)


def test_a_matrix_that_no_damping_mends_is_refused_by_the_layers_name():
    gram = Gram(indefinite(40), "block 3 q_proj")
    with pytest.raises(GrampruneError) as error:
        gram.inverse(1e-3, shift=1.0)
    assert_sentence(error, "block 3 q_proj", "not positive definite", "damping 10:", "float64")


@pytest.mark.parametrize(
    "matrix, words",
    [
        (torch.ones(2, 3), "(2, 3)"),
        (torch.ones(4), "(4,)"),
        (torch.eye(2).half(), "torch.float16"),
        (torch.eye(2).bfloat16(), "torch.bfloat16"),
        (torch.eye(2).int(), "torch.int32"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "NaN"),
        (torch.tensor([[float("inf")]]), "infinite"),
        (torch.tensor([[-1.0]]), "entry (0, 0) is -1; expected XᵀX, which has no negative values on its diagonal"),
        (torch.tensor([[4.0, 1.0], [2.0, 4.0]]), "entry (0, 1) is 1 and (1, 0) is 2; expected a symmetric matrix"),
        (torch.full((3, 3), 2.0).triu(), "entry (0, 1) is 2 and (1, 0) is 0"),
        (torch.tensor([[1.0, 3.0], [3.0, 4.0]]), "entry (0, 1) is 3 and the diagonal's 1 and 4"),
        (torch.tensor([[0.0, 1e-9], [1e-9, 4.0]]), "entry (0, 1) is 1e-09 and the diagonal's 0 and 4"),
    ],
)
def test_a_broken_gram_matrix_is_refused_in_one_sentence(matrix, words):
    with pytest.raises(GrampruneError) as error:
        Gram(matrix, "block 3 q_proj")
    assert_sentence(error, "block 3 q_proj", words)


@pytest.mark.parametrize("place", [(3, 5), (3, 650), (650, 3), (650, 600), (699, 699)])
def test_one_wrong_entry_is_found_wherever_it_is(place):
    """In any of the pieces in which a large matrix is looked at."""
    inputs = torch.randn(800, 700, generator=torch.Generator().manual_seed(0))
    good = inputs.T @ inputs
    entry = f"entry ({min(place)}, {max(place)}) is"
    for wrong, words in ((float("nan"), "NaN"), (float("-inf"), "infinite"), (-1000.0, entry)):
        matrix = good.clone()
        matrix[place] = wrong
        with pytest.raises(GrampruneError) as error:
            Gram(matrix, "block 3 q_proj")
        assert_sentence(error, "block 3 q_proj", words)


def test_what_rounding_does_to_a_gram_matrix_is_no_reason_to_refuse_it():
    """Sums of a million positive products one by one, in two orders; bfloat16; squares too small for float32."""
    million = (1 + torch.rand(1_000_000, 2, generator=torch.Generator().manual_seed(0))).float()
    orders = [(rows[:, :1] * rows).cumsum(0)[-1] for rows in (million, million.flip(0).flip(1))]
    Gram(torch.stack([orders[0], orders[1].flip(0)]))
    inputs = torch.randn(30, 20, generator=torch.Generator().manual_seed(1))
    Gram((inputs.bfloat16().T @ inputs.bfloat16()).float())
    tiny = torch.tensor([[1e-25, 1000.0]])
    assert Gram(tiny.T @ tiny).dead.tolist() == [True, False]


@pytest.mark.parametrize(
    "sums, tokens, words",
    [
        (torch.tensor([3.0, 20.0]), 4, "sums has 20 for input 1, more than 4 tokens with the norm 5 can have"),
        (torch.tensor([3.0, float("inf")]), 4, "sums holds NaN or infinite values"),
        (torch.ones(3), 4, "sums is torch.float32 (3,) on cpu; expected a torch.Tensor (2,)"),
        (torch.ones(2), 0, "tokens is 0; expected 1 or more"),
        (torch.ones(2), 4.5, "tokens is 4.5; expected an integer or None"),
    ],
)
def test_sums_and_tokens_that_the_matrix_cannot_have_are_refused_in_one_sentence(sums, tokens, words):
    matrix = torch.tensor([[9.0, 1.0], [1.0, 25.0]])
    Gram(matrix, "block 3 q_proj", torch.tensor([6.0, -10.0]), 4)
    with pytest.raises(GrampruneError) as error:
        Gram(matrix, "block 3 q_proj", sums, tokens)
    assert_sentence(error, "block 3 q_proj", words)
