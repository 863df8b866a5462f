"""Swaps under re-optimised weights: exchange a kept for a pruned weight by what it does to the *updated* row's error.

When to use: for the lowest layer error, followed by the update exact with the same damping. Any mask is a start; from
one by alps it takes fewer swaps, and on ill-conditioned layers ends lower. (sparseswaps keeps the kept weights as they
are, and so optimises another error.)

One row, in scaled coordinates with the damped Ĥ (see Gram): v is the masked least squares on the kept inputs K, and
r = Ĥ(w − v), which is zero on K. Let A = (Ĥ_KK)⁻¹, B = A Ĥ_KP and S = Ĥ_PP − Ĥ_PK B. Adding p to K lowers the error by
r_p² / S_pp; removing u then raises it again, with v and A as they are after the addition:

    Δ(u, p) = − r_p² / S_pp + (v_u − B_up r_p / S_pp)² / (A_uu + B_up² / S_pp)

Exactly, for narrow linears: a row's tableau T = [[A, −B], [Bᵀ, S]] holds all of these numbers, and an exchange is one
principal pivot on {u, p}, an update of rank two. Ends when no exchange lowers the row's error.

Where zeros are counted over the matrix, u and p may be of different rows. Rows are problems of their own, so there the
change is v_u² / A_uu of the one minus r_p² / S_pp of the other. In turns with the swaps within rows, the cheapest
removals of some rows are exchanged for the best additions of others (see exchange), until neither lowers the error.

In batches of swaps, for wide linears, whose tableaus would not fit: A_jj and 1 / S_jj lie between 1 / Ĥ_jj (no other
weight moves) and [Ĥ⁻¹]_jj (all others do); one guess between them orders the candidates. The n cheapest removals and n
best additions are made together, v follows by a few warm-started conjugate gradients, and a row takes the step only if
its error falls; otherwise it tries half as many.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning.exchange import matched
from gramprune.pruning.gram import Gram
from gramprune.pruning.numerics import equal_rows, parts
from gramprune.pruning.sparsity import Pattern
from gramprune.pruning.updates.exact import DAMPING, solve
from gramprune.pruning.updates.pcg import conjugate_gradients

TOLERANCE = 1e-6  # by which share of its error an exchange must lower a row's
FEW = 32  # cheapest removals and best additions whose pairs are tried before all pairs
STEPS = 12  # conjugate gradients after a batch of swaps
TABLEAUS = 2**24  # elements of a batch of tableaus and what is computed with them, on a CPU
ROUNDS = 100  # batches of swaps at most
BETWEEN = 0.75  # of the way, in logarithms, from 1 / Ĥ_jj to [Ĥ⁻¹]_jj: better than 0.5 and 1 on real layers
WORTH = 1e-3  # by which share of the error exchanges of a batch across rows must lower it to be followed by others
INFINITY = float("inf")


def refine(
    weight: Tensor,  # (out, in)
    gram: Gram,
    mask: Tensor,  # (out, in) bool
    pattern: Pattern,
    damping: float = DAMPING,
    max_swaps: int | None = None,  # per row, over a matrix on average; None: until no exchange helps
    exact_inputs: int = 1024,  # up to so many inputs the search is exact
) -> tuple[Tensor, dict]:
    """The mask after the exchanges, and statistics.

    Statistics: `swaps` (out,) int64, one across rows counted where a weight was pruned; `error_before`, `error_after`:
    layer errors after the update exact; `searched`: "exactly", of all pairs that the pattern allows, or "in batches";
    `damping`. A row that would not end with less error stays as it was; across rows their sum counts.
    Raises GrampruneError for options out of range.
    """
    if exact_inputs < 1 or (max_swaps is not None and max_swaps < 1):
        raise GrampruneError(
            f"{gram.name}: swaps-reoptimised needs max_swaps and exact_inputs of 1 or more; found {max_swaps} and "
            f"{exact_inputs}."
        )
    before, stats = solve(weight, gram, mask, damping)
    damping = stats["damping"]
    system = gram.damped(damping)[0]
    dense, size, limit = weight * gram.norms, pattern.group, max_swaps or 4 * weight.shape[1]
    exactly = weight.shape[1] <= exact_inputs
    if exactly:
        refined, swaps = _exactly(dense, system, mask, size, limit, gram.name)
    else:
        inverse = gram.inverse(damping)[0].diagonal() ** BETWEEN / system.diagonal() ** (1 - BETWEEN)
        refined, swaps = _in_batches(dense, system, inverse, mask, before * gram.norms, size, limit)
    after = solve(weight, gram, refined, damping)[0]
    old, new = (_errors((weight - updated) * gram.norms, system) for updated in (before, after))
    better = new < old
    refined, swaps = torch.where(better[:, None], refined, mask), swaps.where(better, 0)
    new = torch.minimum(old, new)
    if pattern.granularity == "matrix":
        weights = torch.where(better[:, None], after, before).mul_(gram.norms)
        del before, after

        def optimal(rows: Tensor, kept: Tensor) -> Tensor:
            return solve(weight[rows], gram, kept, damping)[0].mul_(gram.norms)

        if exactly:

            def within(rows: Tensor, kept: Tensor, limit: int) -> tuple[Tensor, Tensor]:
                return _exactly(dense[rows], system, kept, size, limit, gram.name)

            turn, worth = _by_paths(dense, system, gram.name), 0.0
        else:

            def within(rows: Tensor, kept: Tensor, limit: int) -> tuple[Tensor, Tensor]:
                return _in_batches(dense[rows], system, inverse, kept, optimal(rows, kept), size, limit)

            turn, worth = _by_guess(dense, system, inverse), WORTH
        refined, swaps, new = _across_rows(
            dense, system, refined, weights, new, swaps, limit, (turn, within, optimal), worth
        )
    return refined, {
        "swaps": swaps,
        "error_before": float(old.sum(dtype=torch.float64)),
        "error_after": float(new.sum(dtype=torch.float64)),
        "searched": "exactly" if exactly else "in batches",
        "damping": damping,
    }


def _across_rows(
    dense: Tensor,  # (out, in)
    system: Tensor,  # (in, in)
    mask: Tensor,  # (out, in) bool, after the swaps within rows
    weights: Tensor,  # (out, in), optimal for the mask; used up
    errors: Tensor,  # (out,)
    swaps: Tensor,  # (out,) int64, made so far
    limit: int,  # swaps per row, on average
    steps: tuple[Callable, Callable, Callable],  # a turn across rows, swaps within rows, optimal weights
    worth: float,  # a turn must lower the error by more than this share
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks, swaps and errors after exchanges across rows and within those that changed, in turns, until none helps."""
    turn, within, optimal = steps
    left, rows = limit * len(mask) - int(swaps.sum()), torch.arange(len(mask), device=mask.device)
    while True:
        new = turn(mask, weights, errors, rows, left)
        rows = (new ^ mask).any(dim=1).nonzero()[:, 0]
        if not len(rows):
            return mask, swaps, errors
        removed = (mask & ~new).sum(dim=1)
        left -= int(removed.sum())
        new[rows], more = within(rows, new[rows], min(limit, left // len(rows)))
        found = optimal(rows, new[rows])
        after = _errors(dense[rows] - found, system)
        gained = float((errors[rows] - after).sum(dtype=torch.float64))
        if not gained > worth * float(errors.sum(dtype=torch.float64)):
            return mask, swaps, errors
        left -= int(more.sum())
        mask, weights[rows], errors, swaps = new, found, errors.index_copy(0, rows, after), swaps + removed
        swaps[rows] += more


def _by_paths(dense: Tensor, system: Tensor, name: str) -> Callable:
    """A turn across rows, exactly. From its tableau every row gets its cheapest removals, one after the other, and its
    best additions; rows that take part use as many of one kind as pay."""
    steps = max(1, dense.shape[1] // 16)
    shape, device = (len(dense), steps), dense.device
    best = {sign: (dense.new_empty(shape), torch.empty(shape, dtype=torch.int64, device=device)) for sign in (-1, 1)}

    def turn(mask: Tensor, weights: Tensor, errors: Tensor, stale: Tensor, limit: int) -> Tensor:
        for part, kept, _ in equal_rows(mask[stale], lambda count: 6 * mask.shape[1] ** 2, dense, TABLEAUS):
            rows = stale[part]
            first = (*_start(dense[rows], system, mask[rows], kept, name)[:2], mask[rows])
            for sign, (changes, places) in best.items():
                tableau, state, m = (tensor.clone() for tensor in first) if sign < 0 else first
                for step in range(steps):
                    change = (state.square() / tableau.diagonal(dim1=1, dim2=2)).mul_(-sign)
                    change.masked_fill_(m if sign > 0 else ~m, INFINITY)
                    changes[rows, step], place = change.min(dim=1)
                    places[rows, step] = place
                    _pivot(tableau, state, place[:, None])
                    m.scatter_(1, place[:, None], sign > 0)
        share = TOLERANCE * torch.maximum(errors, torch.finfo(dense.dtype).eps * _errors(dense, system))[:, None]
        net, new = matched(best[-1][0] + share, best[1][0] + share, limit), mask.clone()
        for sign, (_, places) in best.items():
            rows, step = (torch.arange(steps, device=net.device) < sign * net[:, None]).nonzero().T
            new[rows, places[rows, step]] = sign > 0
        return new

    return turn


def _by_guess(dense: Tensor, system: Tensor, inverse: Tensor) -> Callable:
    """A turn across rows in batches of swaps: the cheapest removals of the matrix for its best additions, as many as
    lower the error."""

    def turn(mask: Tensor, weights: Tensor, errors: Tensor, stale: Tensor, limit: int) -> Tensor:
        loss = (weights.square() / inverse).masked_fill_(~mask, INFINITY)
        gain = ((dense - weights) @ system).square_().mul_(inverse).masked_fill_(mask, -INFINITY)
        most = max(1, min(limit, int(mask.sum()) // 8, int((~mask).sum()) // 8)) if limit > 0 else 0
        (least, u), (most_gained, p) = loss.flatten().topk(most, largest=False), gain.flatten().topk(most)
        number = int((most_gained > least).sum())
        while number:
            new = mask.clone()
            new.view(-1)[u[:number]], new.view(-1)[p[:number]] = False, True
            rows = (new ^ mask).any(dim=1).nonzero()[:, 0]
            found = conjugate_gradients(dense[rows], system, new[rows], weights[rows] * new[rows], STEPS, 0.0)[0]
            after = _errors(dense[rows] - found, system)
            if after.sum(dtype=torch.float64) < errors[rows].sum(dtype=torch.float64):
                return new
            number //= 2
        return mask

    return turn


def _errors(difference: Tensor, system: Tensor) -> Tensor:
    """(rows,) damped errors of differences (rows, in) to the dense weights."""
    return (difference @ system).mul_(difference).sum(dim=1)


def _exactly(dense: Tensor, system: Tensor, mask: Tensor, size: int, limit: int, name: str) -> tuple[Tensor, Tensor]:
    """Masks and swaps of the best exchanges, one after the other. size: of the pattern's groups, 0 for none."""
    columns, mask = dense.shape[1], mask.clone()
    swaps = torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
    # A row without error must not exchange by rounding.
    rounding = torch.finfo(dense.dtype).eps * _errors(dense, system)
    for rows, kept, pruned in equal_rows(mask, lambda count: 4 * columns**2, dense, TABLEAUS):
        if not kept.shape[1] or not pruned.shape[1]:
            continue
        tableau, state, right = _start(dense[rows], system, mask[rows], kept, name)
        error = (dense[rows] * right).sum(dim=1) - (state * right * mask[rows]).sum(dim=1)
        error = torch.maximum(error, rounding[rows])
        while len(rows):
            change, u, p = _best_pair(tableau, state, mask[rows], size, -TOLERANCE * error)
            going = ((change < -TOLERANCE * error) & (swaps[rows] < limit)).nonzero()[:, 0]
            if len(going) < len(rows):
                going = _compact(tableau, going)
                tableau, rows, state, error = tableau[: len(going)], rows[going], state[going], error[going]
                change, u, p = change[going], u[going], p[going]
            _pivot(tableau, state, torch.stack([u, p], dim=1))
            mask[rows, u], mask[rows, p] = False, True
            error, swaps[rows] = torch.maximum(error + change, rounding[rows]), swaps[rows] + 1
    return mask, swaps


def _start(dense: Tensor, system: Tensor, mask: Tensor, kept: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tableaus (rows, in, in), states (rows, in) and Ĥw (rows, in) of rows with equally many kept (rows, k)."""
    tableau = _tableau(system, kept, name)
    right = dense @ system
    # v where kept; −r where pruned, which is what the tableau gives for inputs Ĥw on K, minus Ĥw.
    state = (tableau @ right.masked_fill(~mask, 0)[:, :, None])[:, :, 0] - right.masked_fill(mask, 0)
    return tableau, state, right


def _compact(tableau: Tensor, going: Tensor) -> Tensor:
    """Move the tableaus of `going` (n,) to the first n places, as few as possible; returns who is where now."""
    places = torch.arange(len(tableau), device=going.device)[: len(going)]
    free = places[~torch.isin(places, going)]
    if len(free):
        moved = going[going >= len(going)]
        tableau[free] = tableau[moved]
        places[free] = moved
    return places


def _tableau(system: Tensor, kept: Tensor, name: str) -> Tensor:
    """T (rows, in, in) of the kept columns (rows, k), in the inputs' own order. name: of the layer, for the error."""
    rows, columns = len(kept), len(system)
    cross = parts(system, kept, torch.arange(columns, device=kept.device).expand(rows, -1))  # Ĥ_K: (rows, k, in)
    factor, info = torch.linalg.cholesky_ex(parts(system, kept, kept))
    if info.any():  # not NaN, which would look like a row that needs no swap
        raise GrampruneError(
            f"{name}: the systems of kept weights are not positive definite in {system.dtype}; raise the damping of "
            "swaps-reoptimised, use more samples or `precision: float64`."
        )
    half = torch.linalg.solve_triangular(factor, cross, upper=False)
    tableau = torch.baddbmm(system, half.mT, half, alpha=-1)
    spread = torch.linalg.solve_triangular(factor.mT, half, upper=True)  # A Ĥ_K, so the identity on K and B on P
    index = torch.arange(rows, device=kept.device)[:, None]
    tableau[index, kept] = -spread
    tableau.mT[index, kept] = spread
    tableau[index[:, :, None], kept[:, :, None], kept[:, None, :]] = torch.cholesky_inverse(factor)
    return tableau


def _pivot(tableau: Tensor, state: Tensor, pair: Tensor) -> None:
    """Exchange the roles of the two inputs of every row's pair (rows, 2), or of one (rows, 1)."""
    index = torch.arange(len(pair), device=pair.device)[:, None]
    across = pair[:, :, None].expand(-1, -1, tableau.shape[1])
    lines, columns = tableau.gather(1, across), tableau.mT.gather(1, across).mT  # (rows, n, in), (rows, in, n)
    block = lines.gather(2, pair[:, None, :].expand(-1, pair.shape[1], -1))
    if pair.shape[1] == 1:
        inverse = 1 / block
    else:
        a, b, c, d = block.flatten(1).unbind(dim=1)
        inverse = torch.stack([d, -b, -c, a], dim=1).view(-1, 2, 2) / (a * d - b * c)[:, None, None]
    moved = columns @ inverse
    tableau.baddbmm_(moved, lines, alpha=-1)
    tableau[index, pair] = -(inverse @ lines)
    tableau.mT[index, pair] = moved.mT
    tableau[index[:, :, None], pair[:, :, None], pair[:, None, :]] = inverse
    steps = -(inverse @ state.gather(1, pair)[:, :, None])
    state.add_((columns @ steps)[:, :, 0]).scatter_(1, pair, steps[:, :, 0])


def _best_pair(
    tableau: Tensor, state: Tensor, kept: Tensor, size: int, enough: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest Δ (rows,) and its u and p; where none of the likely pairs is below `enough`, all are scored."""
    diagonal = tableau.diagonal(dim1=1, dim2=2)
    strength = state.square() / diagonal
    columns = state.shape[1]
    if size:  # all pairs within the groups
        u, p = (torch.arange(columns, device=state.device).view(1, -1, size).expand(len(state), -1, -1) for _ in "up")
        T = tableau.view(-1, columns // size, size, columns // size, size).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        return _best(T, u, p, state, diagonal, kept)
    few = min(FEW, columns)
    u = strength.masked_fill(~kept, INFINITY).topk(few, dim=1, largest=False).indices
    p = strength.masked_fill(kept, -1).topk(few, dim=1).indices
    T = tableau.gather(1, u[:, :, None].expand(-1, -1, columns)).gather(2, p[:, None, :].expand(-1, few, -1))
    change, best_u, best_p = _best(T[:, None], u[:, None], p[:, None], state, diagonal, kept)
    for row in (change >= enough).nonzero()[:, 0].tolist():
        here = slice(row, row + 1)
        every = torch.arange(columns, device=state.device)[None, None]
        change[here], best_u[here], best_p[here] = _best(
            tableau[here, None], every, every, state[here], diagonal[here], kept[here]
        )
    return change, best_u, best_p


def _best(
    T: Tensor,  # (rows, groups, k, l), the tableau's entries of the pairs
    u: Tensor,  # (rows, groups, k)
    p: Tensor,  # (rows, groups, l)
    state: Tensor,  # (rows, in)
    diagonal: Tensor,  # (rows, in)
    kept: Tensor,  # (rows, in) bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest Δ (rows,) among the pairs of u and p of each group, and which it is."""

    def at(values: Tensor, place: Tensor) -> Tensor:
        return values.gather(1, place.flatten(1)).view(place.shape)

    gain = at(state, p) / at(diagonal, p)  # −r_p / S_pp
    left = at(state, u)[..., None] - T * gain[..., None, :]  # v_u once p is added
    room = at(diagonal, u)[..., None] + T.square() / at(diagonal, p)[..., None, :]
    change = left.square_().div_(room).sub_((gain * at(state, p))[..., None, :])
    change.masked_fill_(~at(kept, u)[..., None], INFINITY).masked_fill_(at(kept, p)[..., None, :], INFINITY)
    best, place = change.flatten(1).min(dim=1)
    group, rest = place // (u.shape[2] * p.shape[2]), place % (u.shape[2] * p.shape[2])
    index = torch.arange(len(place), device=place.device)
    return best, u[index, group, rest // p.shape[2]], p[index, group, rest % p.shape[2]]


def _in_batches(
    dense: Tensor,  # (out, in)
    system: Tensor,  # (in, in)
    inverse: Tensor,  # (in,) guess of A_jj and 1 / S_jj
    mask: Tensor,  # (out, in) bool
    weights: Tensor,  # (out, in), optimal for the mask
    size: int,
    limit: int,
) -> tuple[Tensor, Tensor]:
    """Masks and swaps, several at a time."""
    mask, weights = mask.clone(), weights.clone()
    swaps = torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
    error = _errors(dense - weights, system)
    tries = (torch.minimum(mask.sum(dim=1), (~mask).sum(dim=1)) // 8).clamp(1, limit)
    for _ in range(ROUNDS):
        tries = torch.minimum(tries, limit - swaps)
        rows = (tries > 0).nonzero()[:, 0]
        if not len(rows):
            break
        w, v = dense[rows], weights[rows]
        proposed, made = _exchanged(w, v, mask[rows], system, inverse, size, tries[rows])
        found = conjugate_gradients(w, system, proposed, v.mul_(proposed), STEPS, 0.0)[0]
        new = _errors(w - found, system)
        better = (new < (1 - TOLERANCE) * error[rows]) & (made > 0)
        won = rows[better]
        mask[won], weights[won], error[won] = proposed[better], found[better], new[better]
        swaps[won] += made[better]
        tries[rows[~better]] //= 2
    return mask, swaps


def _exchanged(
    w: Tensor, v: Tensor, m: Tensor, system: Tensor, inverse: Tensor, size: int, number: Tensor
) -> tuple[Tensor, Tensor]:
    """Masks after at most `number` (rows,) exchanges that look good by themselves, and how many they are."""
    residual = (w - v) @ system
    loss = (v.square() / inverse).masked_fill_(~m, INFINITY)
    gain = (residual.square() * inverse).masked_fill_(m, -INFINITY)
    most = int(number.max())
    if size:  # one pair of each group
        groups = (len(w), -1, size)
        (least, u), (best, p) = loss.view(groups).min(dim=2), gain.view(groups).max(dim=2)
        value, group = (best - least).topk(min(most, best.shape[1]), dim=1)
        u, p = (group * size + place.gather(1, group) for place in (u, p))
    else:
        most = min(most, w.shape[1])
        (least, u), (best, p) = loss.topk(most, dim=1, largest=False), gain.topk(most, dim=1)
        value = best - least
    good = (value > 0) & (torch.arange(value.shape[1], device=w.device) < number[:, None])
    m = m.clone()
    m.scatter_(1, u, m.gather(1, u) & ~good).scatter_(1, p, m.gather(1, p) | good)
    return m, good.sum(dim=1)
