"""Retargeted weights: the least squares that they come from, by brute force in float64."""

import pytest
import torch
from problems import DTYPES, assert_near, assert_sentence

import gramprune as gp
from gramprune.pruning.gram import accumulate

pytestmark = pytest.mark.bits

OUT, IN, TOKENS = 5, 12, 40
DEAD = (2, 7)


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight (out, in), and the inputs (tokens, in) of the pruned and of the dense model, of different norms."""
    generator = torch.Generator().manual_seed(seed)
    weight, dense, noise = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((OUT, IN), *[(TOKENS, IN)] * 2)
    )
    dense = dense * torch.linspace(0.1, 4, IN, dtype=torch.float64)
    return weight, dense + 0.5 * noise, dense


def least_squares(weight, pruned, dense, pull):
    """argmin over V of ‖X_d Wᵀ − X_p Vᵀ‖² + λ‖W − V‖², the pull as rows of their own."""
    live = pruned.norm(dim=0) > 0
    ridge = (pull * pruned[:, live].square().sum(dim=0).mean()).sqrt() * torch.eye(IN, dtype=torch.float64)
    return torch.linalg.lstsq(torch.cat([pruned, ridge]), torch.cat([dense, ridge]) @ weight.T).solution.T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dead", [(), DEAD])
@pytest.mark.parametrize("pull", [0.05, 0.5, 3.0])
def test_it_is_the_least_squares_fit_of_the_dense_models_outputs(pull, dead, dtype):
    weight, pruned, dense = inputs()
    pruned[:, dead] = 0  # dead behind pruned blocks, alive in the dense model
    gram, cross = (torch.zeros(IN, IN, dtype=dtype) for _ in range(2))
    for rows in (slice(0, 15), slice(15, None)):
        accumulate(gram, pruned[rows])
        accumulate(cross, pruned[rows], dense[rows])
    found = gp.retarget_weight(weight.to(dtype), gram, cross, pull)
    assert found.dtype == dtype
    assert_near(found, least_squares(weight, pruned, dense, pull))
    assert torch.equal(found[:, dead], weight.to(dtype)[:, dead])


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_nothing_has_changed_it_is_the_dense_weight_to_the_bit(dtype):
    weight, pruned, _ = inputs()
    pruned[:, DEAD] = 0
    gram = (pruned.T @ pruned).to(dtype)
    assert torch.equal(gp.retarget_weight(weight.to(dtype), gram, gram), weight.to(dtype))


def test_pruning_it_differs_from_pruning_for_the_dense_outputs_by_a_constant():
    weight, pruned, dense = inputs()
    gram, cross = pruned.T @ pruned, pruned.T @ dense
    aim = gp.retarget_weight(weight, gram, cross, 1e-9)
    gaps = []
    for seed in range(3):
        other = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        wanted = float((dense @ weight.T - pruned @ other.T).square().sum())
        gaps.append(wanted - gp.layer_error(aim, other, gram))
    assert gaps == pytest.approx([gaps[0]] * 3, rel=1e-6)


def test_what_does_not_fit_is_said():
    weight, pruned, dense = inputs()
    gram, cross = pruned.T @ pruned, pruned.T @ dense
    with pytest.raises(gp.GrampruneError) as error:
        gp.retarget_weight(weight, gram, cross[:-1])
    assert_sentence(error, "cross is torch.float64 (11, 12) on cpu; expected a torch.Tensor (12, 12)")
    with pytest.raises(gp.GrampruneError) as error:
        gp.retarget_weight(weight, gram, cross, 0)
    assert_sentence(error, "the pull towards the dense weights is 0.0; expected more than 0.")
