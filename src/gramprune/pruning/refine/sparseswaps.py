"""SparseSwaps: exchange a kept for a pruned weight, the best pair of a row first (arXiv 2512.10922).

When to use: lowers the layer error of any mask whose kept weights stay as they are, and proves at the end that no
exchange of two weights would lower it further. What an update will do to the kept weights is not foreseen: for that
see swaps-reoptimised.

One row, in scaled coordinates (see Gram): with z = w where pruned and 0 where kept, c = Ĝz and the error L = z·c, the
exchange of kept u for pruned p changes the error by

    Δ(u, p) = a_u + b_p − x_up,    a_u = w_u² + 2 w_u c_u,    b_p = w_p² − 2 w_p c_p,    x_up = 2 w_u w_p Ĝ_up

The paper scores all pairs. Here the same pair is found among few. With the coupling g_j = max |Ĝ_ij| over i ≠ j of an
input, |Ĝ_up| ≤ √(g_u g_p), so x_up ≤ λ g_u w_u² + g_p w_p² / λ for every λ > 0, and therefore

    min_p Δ(u, p) ≥ low_u = max_λ ( a_u − λ g_u w_u² + min_p (b_p − g_p w_p² / λ) )

and likewise low_p: a few passes over the row. Every row has shortlists of kept and of pruned weights, whose bounds were
the smallest when they were made. As x does not change, it is stored for their pairs, which then cost an addition each.
A weight outside the shortlists can be in a better pair only if its bound is below the best Δ found: a kept one is tried
with all others, a pruned one with those listed. When too many are outside, this row's shortlists are made anew.

Where zeros are counted over the matrix, u and p may be of different rows, and then Δ = a_u + b_p: the x has no part, as
rows' errors add up. When the rows are done, sweeps exchange the cheapest removals of some for the best additions of
others (see exchange), the rows that changed are searched again, and so on until neither finds anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gramprune.errors import GrampruneError
from gramprune.pruning.exchange import improvable, matched
from gramprune.pruning.gram import Gram
from gramprune.pruning.numerics import parts, rows_per_batch, rows_per_piece
from gramprune.pruning.sparsity import Pattern

SHORTLIST = 32  # weights of each kind
LAMBDAS = (0.6, 1.0, 1.7)
MISSING = 16  # outside a row's shortlists, that are still tried one by one
CONFIRMATIONS = 4  # how often rows go on after their c was computed afresh
INFINITY = float("inf")


@dataclass
class Rows:
    """The state of a batch of rows; (rows, in) where nothing else is said."""

    weights: Tensor  # w
    slopes: Tensor  # 2w where kept, −2w where pruned
    kept: Tensor  # w² where kept, inf where pruned: a = kept + slopes ∘ c
    pruned: Tensor  # w² where pruned, inf where kept: b = pruned + slopes ∘ c
    c: Tensor  # Ĝz
    error: Tensor  # (rows,) L
    swaps: Tensor  # (rows,) int64, made so far
    index: Tensor  # (rows,) int64, of the row in the batch
    short_u: Tensor  # (rows, shortlist) int64
    short_p: Tensor  # (rows, shortlist) int64
    x: Tensor  # (rows, shortlist, shortlist)

    def __getitem__(self, which: Tensor) -> Rows:
        return Rows(*(tensor.index_select(0, which) for tensor in vars(self).values()))


Find = Callable[[Rows, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(rows, enough (rows, 1)) -> the best change (rows, 1) of every row and its u and p (rows, 1). Where nothing is below
`enough`, any change that is not below it."""


def refine(
    weight: Tensor,  # (out, in)
    gram: Gram,
    mask: Tensor,  # (out, in) bool
    pattern: Pattern,
    max_swaps: int | None = None,  # per row, over a matrix on average; None: until no exchange helps
    tolerance: float = 1e-6,  # an exchange must lower the error of its row, or its two rows, by more than this share
) -> tuple[Tensor, dict]:
    """The mask after the best exchanges, and statistics.

    Statistics: `swaps` (out,) int64, one across rows counted where a weight was pruned; `error_before`, `error_after`:
    layer errors; `curve`: layer error after 0, 1, 2, … steps, in each of which a row makes one swap at most;
    `certified` (out,) bool: proved that no exchange in which the row takes part, within it or across rows, lowers the
    error by more than the tolerance. Raises GrampruneError for options out of range.
    """
    if tolerance < 0 or (max_swaps is not None and max_swaps < 1):
        raise GrampruneError(
            f"{gram.name}: sparseswaps needs max_swaps of 1 or more and tolerance of 0 or more; found {max_swaps} and "
            f"{tolerance}."
        )
    scaled, dense = gram.scaled(), weight * gram.norms
    find, shortlist = (within_groups(scaled, pattern.group), 0) if pattern.group else (anywhere(scaled), SHORTLIST)
    # Rounding could make exchanges undo each other for ever; this is far more than a row needs.
    limit = max_swaps or 4 * weight.shape[1]
    size = rows_per_batch(weight.shape[1] * (8 + 4 * pattern.group), weight)
    args = (scaled, find, shortlist)
    refined, swaps, certified, before, changes = within(dense, mask, *args, limit, tolerance, size)
    if pattern.granularity == "matrix":
        more = across_rows(dense, refined, *args, limit, tolerance, size, swaps, certified)
        refined, swaps, certified = more[:3]
        changes = torch.cat([changes, more[3]])
    curve = torch.cat([torch.tensor([before], dtype=torch.float64), changes]).cumsum(0).tolist()
    return refined, {
        "swaps": swaps,
        "error_before": curve[0],
        "error_after": curve[-1],
        "curve": curve,
        "certified": certified,
    }


def within(
    dense: Tensor,  # (rows, in), scaled
    mask: Tensor,  # (rows, in) bool
    scaled: Tensor,  # (in, in) Ĝ
    find: Find,
    shortlist: int,
    limit: int,  # swaps per row
    tolerance: float,
    size: int,  # rows of a batch
) -> tuple[Tensor, Tensor, Tensor, float, Tensor]:
    """What `search` gives, for any number of rows: in batches."""
    batches = [
        search(rows, kept, scaled, find, shortlist, limit, tolerance)
        for rows, kept in zip(dense.split(size), mask.split(size), strict=True)
    ]
    refined, swaps, certified, errors, changes = map(list, zip(*batches, strict=True))
    total = torch.zeros(max(map(len, changes)), dtype=torch.float64)
    for change in changes:
        total[: len(change)] += change
    return torch.cat(refined), torch.cat(swaps), torch.cat(certified), sum(errors), total


def across_rows(
    dense: Tensor,  # (out, in), scaled
    mask: Tensor,  # (out, in) bool, after the swaps within rows
    scaled: Tensor,  # (in, in) Ĝ
    find: Find,
    shortlist: int,
    limit: int,  # swaps per row, on average
    tolerance: float,
    size: int,  # rows of a batch
    swaps: Tensor,  # (out,) so far
    certified: Tensor,  # (out,) bool, within the rows
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks, swaps and certificates after exchanges across rows and within those that changed, in turns, and changes.

    Turns end when neither finds an exchange, or when a turn does not lower the error that is computed afresh.
    """
    swaps, certified, steps = swaps.clone(), certified.clone(), []
    left = limit * len(mask) - int(swaps.sum())
    c, errors = torch.empty_like(dense), torch.empty_like(dense[:, 0])
    afresh(c, errors, torch.arange(len(mask), device=mask.device), dense, mask, scaled)
    while True:
        before = errors.sum(dtype=torch.float64)
        new, removed, changes, open_ = sweeps(dense, mask, c, errors.clone(), scaled, tolerance, left)
        moved = (new ^ mask).any(dim=1).nonzero()[:, 0]
        if not len(moved):
            break
        left -= int(removed.sum())
        each = min(limit, left // len(moved))
        new[moved], more, proved, _, rest = within(
            dense[moved], new[moved], scaled, find, shortlist, each, tolerance, size
        )
        afresh(c, errors, moved, dense, new, scaled)
        if not errors.sum(dtype=torch.float64) < before:
            break  # what was found was rounding
        left -= int(more.sum())
        swaps += removed
        swaps[moved] += more
        mask, certified[moved] = new, proved
        steps += [changes, rest]
    return mask, swaps, certified & ~open_, torch.cat([torch.zeros(0, dtype=torch.float64), *steps])


def sweeps(
    dense: Tensor,  # (out, in), scaled
    mask: Tensor,  # (out, in) bool
    c: Tensor,  # (out, in) Ĝz; used up where a row changes
    errors: Tensor,  # (out,) L; used up
    scaled: Tensor,  # (in, in) Ĝ
    tolerance: float,
    limit: int,  # exchanges
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mask after exchanges across rows, until none helps; in every sweep a row loses or gains one weight at most.

    Also: removals of every row (out,) int64; the changes of the error by every sweep; and which rows (out,) bool could
    be improved at the beginning.
    """
    changes: list[float] = []
    mask, open_ = mask.clone(), None
    removed = torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
    best = {sign: (torch.empty_like(errors), torch.empty_like(removed)) for sign in (-1, 1)}
    stale = torch.arange(len(mask), device=mask.device)
    while True:
        for rows in stale.split(rows_per_piece(dense)):
            w, kept, slope = dense[rows], mask[rows], 2 * dense[rows] * c[rows]
            for sign, change, closed in ((-1, w * w + slope, ~kept), (1, w * w - slope, kept)):
                best[sign][0][rows], best[sign][1][rows] = change.masked_fill_(closed, INFINITY).min(dim=1)
        # An exchange must lower the errors of its two rows by more than this share of them.
        removals, additions = (best[sign][0] + tolerance * errors for sign in (-1, 1))
        open_ = improvable(removals, additions) if open_ is None else open_
        net = matched(removals[:, None], additions[:, None], limit - int(removed.sum()))
        stale = net.nonzero()[:, 0]
        if not len(stale):
            return mask, removed, torch.tensor(changes, dtype=torch.float64), open_
        changes.append(0.0)
        for sign, (change, place) in best.items():
            rows = (net == sign).nonzero()[:, 0]
            j = place[rows]
            c[rows] += scaled[j] * (-sign * dense[rows, j])[:, None]
            mask[rows, j] = sign > 0
            errors[rows] += change[rows]
            changes[-1] += float(change[rows].sum(dtype=torch.float64))
        removed += net < 0


def afresh(c: Tensor, errors: Tensor, rows: Tensor, dense: Tensor, mask: Tensor, scaled: Tensor) -> None:
    """Compute c (out, in) and the errors (out,) of these rows (n,) for the mask."""
    for some in rows.split(rows_per_piece(dense)):
        removed = dense[some].masked_fill_(mask[some], 0)
        c[some] = removed @ scaled
        errors[some] = removed.mul_(c[some]).sum(dim=1)


def search(
    weights: Tensor,  # (rows, in), scaled
    mask: Tensor,  # (rows, in) bool
    scaled: Tensor,  # (in, in) Ĝ
    find: Find,
    shortlist: int,
    limit: int,  # swaps per row
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor, float, Tensor]:
    """Masks, swaps and certificates (rows,), error before, and by how much the n-th swaps changed it (n,) float64."""
    mask, numbers, changes = mask.clone(), [], []
    swaps = torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
    certified = torch.zeros_like(swaps, dtype=torch.bool)
    rows = start(weights, mask, scaled, swaps, torch.arange(len(mask), device=mask.device), shortlist)
    before = float(rows.error.sum(dtype=torch.float64))
    for _ in range(CONFIRMATIONS):
        fresh, moved = True, rows.index
        while len(rows.index):
            enough = -tolerance * rows.error[:, None]
            change, u, p = find(rows, enough)
            better = (change < enough)[:, 0]
            going = better & (rows.swaps < limit)
            if fresh:  # only a c that was not updated, so has gathered no rounding, is good for a certificate
                certified[rows.index] = ~better
                moved, fresh = rows.index[going], False
            if not going.all():
                going = going.nonzero()[:, 0]
                rows, change, u, p = rows[going], change[going], u[going], p[going]
            numbers.append(rows.swaps.clone())
            changes.append(change[:, 0])
            exchange(rows, change, u, p, scaled)
            mask[rows.index[:, None], u], mask[rows.index[:, None], p] = False, True
            swaps[rows.index] = rows.swaps
        if not len(moved):
            break
        rows = start(weights[moved], mask[moved], scaled, swaps[moved], moved, shortlist)
    numbers, changes = torch.cat(numbers).cpu(), torch.cat(changes).double().cpu()
    return mask, swaps, certified, before, torch.bincount(numbers, weights=changes)


def start(
    weights: Tensor,  # (rows, in), scaled
    mask: Tensor,  # (rows, in) bool
    scaled: Tensor,  # (in, in)
    swaps: Tensor,  # (rows,)
    index: Tensor,  # (rows,)
    shortlist: int,
) -> Rows:
    """The state for these masks, with c computed afresh; at first the shortlists hold the first weights."""
    removed = weights.masked_fill(mask, 0)
    c, own = removed @ scaled, weights.square()
    short = torch.arange(min(shortlist, weights.shape[1]), device=mask.device).repeat(len(mask), 1)
    return Rows(
        weights=weights,
        slopes=torch.where(mask, 2 * weights, -2 * weights),
        kept=own.masked_fill(~mask, INFINITY),
        pruned=own.masked_fill(mask, INFINITY),
        c=c,
        error=(removed * c).sum(dim=1),
        swaps=swaps.clone(),
        index=index,
        short_u=short,
        short_p=short.clone(),
        x=cross(scaled, weights, short, short),
    )


def exchange(rows: Rows, change: Tensor, u: Tensor, p: Tensor, scaled: Tensor) -> None:
    """Make the exchange of u (rows, 1) for p (rows, 1) in every row."""
    for j, sign, now, then in ((u, 1, rows.kept, rows.pruned), (p, -1, rows.pruned, rows.kept)):
        weights = rows.weights.gather(1, j)
        rows.c.addcmul_(weights, scaled.index_select(0, j[:, 0]), value=sign)
        rows.slopes.scatter_(1, j, -2 * sign * weights)
        then.scatter_(1, j, now.gather(1, j))
        now.scatter_(1, j, INFINITY)
    rows.error += change[:, 0]
    rows.swaps += 1


def anywhere(scaled: Tensor) -> Find:
    """The search for pairs anywhere in a row, by shortlists, bounds and proof."""
    room = rows_per_batch(4 * len(scaled), scaled)
    coupling = scaled.abs().fill_diagonal_(0).amax(dim=0)

    def find(rows: Rows, enough: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = (torch.addcmul(base, rows.slopes, rows.c) for base in (rows.kept, rows.pruned))
        lows = bounds(a, b, coupling * rows.weights.square())
        best, u, p = best_pair(a, b, rows.short_u, rows.short_p, rows.x)
        missing = not_listed(lows, (rows.short_u, rows.short_p), torch.minimum(best, enough))
        kept, pruned = (which.sum(dim=1) for which in missing)
        stale = (kept + pruned > MISSING).nonzero()[:, 0]
        if len(stale):
            low, limit = [low[stale] for low in lows], enough[stale]
            u_, p_ = (each.topk(rows.x.shape[1], dim=1, largest=False, sorted=False).indices for each in low)
            x = cross(scaled, rows.weights[stale], u_, p_)
            best[stale], u[stale], p[stale] = best_pair(a[stale], b[stale], u_, p_, x)
            rows.short_u[stale], rows.short_p[stale], rows.x[stale] = u_, p_, x
            for which, new in zip(missing, not_listed(low, (u_, p_), torch.minimum(best[stale], limit)), strict=True):
                which[stale] = new
        # Δ = a_u + b_p + w_u slope_p Ĝ_up. Pairs of which neither is listed are among the first of these two kinds.
        for row, j in zip(*(part.split(room) for part in missing[0].nonzero().T), strict=True):
            change = scaled.index_select(0, j).mul_(rows.slopes.index_select(0, row))
            change.mul_(rows.weights[row, j][:, None]).add_(b.index_select(0, row))
            take(best, u, p, row, j, a[row, j], change, None)
        row, j = missing[1].nonzero().T
        if len(row):
            listed = rows.short_u.index_select(0, row)
            change = scaled.view(-1).index_select(0, (listed + len(scaled) * j[:, None]).flatten()).view(listed.shape)
            change.mul_(rows.weights.gather(1, rows.short_u).index_select(0, row)).mul_(rows.slopes[row, j][:, None])
            change.add_(a.gather(1, rows.short_u).index_select(0, row))
            take(best, p, u, row, j, b[row, j], change, listed)
        return best, u, p

    return find


def take(
    best: Tensor,  # (rows, 1) Δ
    mine: Tensor,  # (rows, 1) int64, u or p of the best
    theirs: Tensor,  # (rows, 1) int64, the other one
    row: Tensor,  # (tried,) int64
    j: Tensor,  # (tried,) int64, which weight of its row was tried
    own: Tensor,  # (tried,) its share of Δ
    change: Tensor,  # (tried, n) the rest of Δ, with each of n others
    others: Tensor | None,  # (tried, n) int64, which these are; None: all
) -> None:
    """Put the best of what was tried in the place of what is worse."""
    least = change.amin(dim=1).add_(own)
    best[:, 0].scatter_reduce_(0, row, least, "amin")
    won = (least == best[row, 0]).nonzero()[:, 0]
    at = change[won].argmin(dim=1, keepdim=True)
    mine[row[won], 0], theirs[row[won]] = j[won], at if others is None else others[won].gather(1, at)


def not_listed(lows: Sequence[Tensor], short: Sequence[Tensor], limit: Tensor) -> list[Tensor]:
    """Kept and pruned weights (rows, in) bool that may be in a pair below the limit, but are not in the shortlist."""
    return [(low < limit).scatter_(1, listed, False) for low, listed in zip(lows, short, strict=True)]


def cross(scaled: Tensor, w: Tensor, u: Tensor, p: Tensor) -> Tensor:
    """x (rows, k, l) of the pairs of u (rows, k) and p (rows, l)."""
    return parts(scaled, u, p).mul_(2 * w.gather(1, u)[:, :, None]).mul_(w.gather(1, p)[:, None, :])


def best_pair(a: Tensor, b: Tensor, u: Tensor, p: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest Δ (rows, 1) among the pairs of u and p (rows, k), and which it is."""
    change = torch.sub(b.gather(1, p)[:, None, :], x)
    least = change.amin(dim=2).add_(a.gather(1, u))
    best, at = least.min(dim=1, keepdim=True)
    at_p = change.gather(1, at[:, :, None].expand(-1, 1, change.shape[2]))[:, 0].argmin(dim=1, keepdim=True)
    return best, u.gather(1, at), p.gather(1, at_p)


def bounds(a: Tensor, b: Tensor, coupled: Tensor) -> tuple[Tensor, Tensor]:
    """low_u and low_p (rows, in). coupled: (rows, in) g ∘ w²."""
    lows = _bounds(a, b, coupled, LAMBDAS[0])
    for x in LAMBDAS[1:]:
        for low, other in zip(lows, _bounds(a, b, coupled, x), strict=True):
            torch.maximum(low, other, out=low)
    return lows


def _bounds(a: Tensor, b: Tensor, coupled: Tensor, x: float) -> tuple[Tensor, Tensor]:
    """The same for one λ."""
    for_u, for_p = torch.sub(a, coupled, alpha=x), torch.sub(b, coupled, alpha=1 / x)
    least_u, least_p = for_u.amin(dim=1, keepdim=True), for_p.amin(dim=1, keepdim=True)
    return for_u.add_(least_p), for_p.add_(least_u)


def within_groups(scaled: Tensor, size: int) -> Find:
    """The search for pairs inside the groups of an N:M pattern: so few that all are scored."""
    groups = len(scaled) // size
    blocks = scaled.reshape(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (groups, M, M)

    def find(rows: Rows, enough: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = (torch.addcmul(base, rows.slopes, rows.c) for base in (rows.kept, rows.pruned))
        a, b, w = (tensor.view(-1, groups, size) for tensor in (a, b, rows.weights))
        change = (w[..., :, None] * w[..., None, :]).mul_(blocks).mul_(-2).add_(a[..., :, None]).add_(b[..., None, :])
        best, place = change.flatten(1).min(dim=1, keepdim=True)
        first = place // size**2 * size
        return best, first + place // size % size, first + place % size

    return find
