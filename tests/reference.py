"""The published formulas in float64, one by one and with plain loops: what the methods are compared with.

Nothing here is imported from the package. A pattern is `(value, granularity)` as in config.yaml.
"""

import itertools

import torch
from torch import Tensor


def choices(shape: tuple[int, int], pattern: tuple) -> list[list[tuple[int, int]]]:
    """The sets of weights, in reading order, of which each loses its own share."""
    (rows, columns), (value, granularity) = shape, pattern
    if isinstance(value, str):
        group = int(value.split(":")[1])
        return [[(i, g + j) for j in range(group)] for i in range(rows) for g in range(0, columns, group)]
    if granularity == "matrix":
        return [[(i, j) for i in range(rows) for j in range(columns)]]
    return [[(i, j) for j in range(columns)] for i in range(rows)]


def sparsity(pattern: tuple) -> float:
    """Fraction of zeros: 3/4 for 1:4."""
    value = pattern[0]
    if not isinstance(value, str):
        return value
    keep, group = value.split(":")
    return (int(group) - int(keep)) / int(group)


def mask(scores: Tensor, pattern: tuple, fraction: float | None = None) -> Tensor:
    """Of every choice the smallest scores are pruned; of equal ones the lowest index first."""
    kept = torch.ones(scores.shape, dtype=torch.bool)
    values = scores.tolist()
    for choice in choices(scores.shape, pattern):
        count = round((sparsity(pattern) if fraction is None else fraction) * len(choice))
        # Python's sort is stable: equal scores stay in reading order.
        for i, j in sorted(choice, key=lambda place: values[place[0]][place[1]])[:count]:
            kept[i, j] = False
    return kept


def magnitude(weight: Tensor, gram: Tensor, pattern: tuple) -> Tensor:
    """Score |W_ij|."""
    return mask(weight.double().abs(), pattern)


def wanda(weight: Tensor, gram: Tensor, pattern: tuple) -> Tensor:
    """Score |W_ij| · sqrt(G_jj) (arXiv 2306.11695)."""
    return mask(weight.double().abs() * gram.double().diagonal().sqrt(), pattern)


def admm(weight: Tensor, gram: Tensor, choose, iterations: int = 20, damping: float = 0.1, rho: float = 1.0):
    """ADMM as printed (arXiv 2401.02938): the mask of each step is `choose(step from 1, V + U)`."""
    W, G = weight.double(), gram.double()
    n = G.diagonal().sqrt()
    dead = n == 0
    n = torch.where(dead, torch.ones_like(n), n)  # nothing is divided by a dead input's zero
    damped = G / n[:, None] / n[None, :] + damping * torch.eye(len(G), dtype=torch.float64)
    factor = torch.linalg.cholesky(damped + rho * torch.eye(len(G), dtype=torch.float64))
    scaled = W * torch.where(dead, torch.zeros_like(n), n)
    V, U = scaled, torch.zeros_like(W)
    for step in range(1, iterations + 1):
        M = choose(step, V + U)
        Z = (V + U) * M
        U = U + V - Z
        V = torch.cholesky_solve((scaled @ damped + rho * (Z - U)).T, factor).T
    new = (V + U) * M / n
    new[:, dead] = (W * M)[:, dead]  # they change nothing, so they stay
    return M, new


def fixed_admm(weight: Tensor, gram: Tensor, given: Tensor, **options) -> Tensor:
    """The update for a given mask."""
    return admm(weight, gram, lambda step, current: given, **options)[1]


def gradual_admm(weight: Tensor, gram: Tensor, pattern: tuple, schedule: str = "ramp", ramp: int = 15, **options):
    """Mask and weights, the mask re-chosen from |V + U| at s_t = s − s(1 − t/ramp)³ for t = 1 … ramp."""
    s, chosen = sparsity(pattern), None

    def choose(step: int, current: Tensor) -> Tensor:
        nonlocal chosen
        if step > ramp:
            return chosen
        s_t = s if schedule == "jump" else s - s * (1 - step / ramp) ** 3
        chosen = _at(current.abs(), pattern, s_t, last=schedule == "jump" or step == ramp)
        return chosen

    return admm(weight, gram, choose, **options)


def _at(scores: Tensor, pattern: tuple, s_t: float, last: bool) -> Tensor:
    """A mask on the way to the pattern; N:M: the N best of a group are safe, the worst of all others go."""
    if last:
        return mask(scores, pattern)
    if not isinstance(pattern[0], str):
        return mask(scores, pattern, s_t)
    final = mask(scores, pattern)
    rest = [(float(scores[i, j]), i, j) for i, j in (~final).nonzero().tolist()]
    kept = torch.ones(scores.shape, dtype=torch.bool)
    for _, i, j in sorted(rest)[: round(s_t * scores.numel())]:
        kept[i, j] = False
    return kept


def layer_error(weight: Tensor, new: Tensor, inputs: Tensor) -> float:
    """‖X Wᵀ − X Vᵀ‖²_F from the inputs themselves."""
    X = inputs.double()
    return float((X @ weight.double().T - X @ new.double().T).square().sum())


def least_squares(weight: Tensor, gram: Tensor, given: Tensor) -> Tensor:
    """The exact optimum for a mask, row by row: v_K = G_KK⁻¹ (G w)_K."""
    W, G = weight.double(), gram.double()
    new = torch.zeros_like(W)
    for i, kept in enumerate(given):
        right = (G @ W[i])[kept]
        new[i, kept] = torch.cholesky_solve(right[:, None], torch.linalg.cholesky(G[kept][:, kept]))[:, 0]
    return new


def inverse(matrix: Tensor) -> Tensor:
    """Of a symmetric matrix, from its eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors / values @ vectors.T


def damped(weight: Tensor, gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """W and H = G + damping·mean(diag G); dead inputs get the weight 0 and the diagonal 1, as in SparseGPT's code."""
    W, H = weight.double().clone(), gram.double().clone()
    dead = H.diagonal() == 0
    H.diagonal().add_(damping * H.diagonal()[~dead].mean())
    H[dead, dead] = 1
    W[:, dead] = 0
    return W, H


def ria(weight: Tensor, gram: Tensor, power: float = 0.5) -> Tensor:
    """Scores (|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) · sqrt(G_jj)^a ("Plug-and-Play", ICLR 2024)."""
    W, n = weight.double().abs(), gram.double().diagonal().sqrt()
    scores = torch.zeros_like(W)
    for i, row in enumerate(W):
        for j, column in enumerate(W.T):
            if W[i, j] > 0:
                scores[i, j] = (W[i, j] / column.sum() + W[i, j] / row.sum()) * n[j] ** power
    return scores


def sparsegpt(
    weight: Tensor,
    gram: Tensor,
    pattern: tuple | None,
    given: Tensor | None = None,
    damping: float = 0.01,
    width: int = 128,
) -> tuple[Tensor, Tensor]:
    """Mask and weights of the OBS sweep (arXiv 2301.00774), without its Cholesky factor.

    Column j knows the inverse of H over the columns from j on: C_jj² is its first entry and C_jj C_j,: its first row.
    """
    W, H = damped(weight, gram, damping)
    (rows, columns), M = W.shape, torch.ones(W.shape, dtype=torch.bool)
    dead = gram.diagonal() == 0
    inverses = [inverse(H[j:, j:]) for j in range(columns)]
    square = torch.stack([own[0, 0] for own in inverses])
    step = width if given is not None or not isinstance(pattern[0], str) else int(pattern[0].split(":")[1])
    for j in range(columns):
        if j % step == 0:
            here, stop = slice(j, j + step), min(j + step, columns)
            if given is not None:
                M[:, here] = given[:, here]
            elif isinstance(pattern[0], str):
                M[:, here] = mask(W[:, here] ** 2 / square[here], pattern)
            else:
                height = rows if pattern[1] == "matrix" else 1
                count = round(pattern[0] * height * stop) - round(pattern[0] * height * j)
                M[:, here] = mask(W[:, here] ** 2 / square[here], pattern, count / (height * (stop - j)))
        for i in range(rows):
            if not M[i, j]:
                W[i, j:] -= W[i, j] / inverses[j][0, 0] * inverses[j][0]
        W[:, dead] = 0  # but for the rounding of the inverses they would still be
    W[:, dead] = weight.double()[:, dead]
    return M, W * M


def mrp_single(weight: Tensor, gram: Tensor, damping: float = 0.01) -> Tensor:
    """Scores w_p² / [H⁻¹]_pp of solution S (arXiv 2410.15567)."""
    W, H = damped(weight, gram, damping)
    return W**2 / inverse(H).diagonal()


def mrp_losses(weight: Tensor, gram: Tensor, value: str, damping: float = 0.01) -> dict:
    """Solution M: ½ w_P ([H⁻¹]_PP)⁻¹ w_Pᵀ (arXiv 2410.15567, Eq. 12) as {(row, first column): {P: loss}}."""
    W, H = damped(weight, gram, damping)
    keep, group = map(int, value.split(":"))
    losses: dict = {(i, g): {} for i in range(len(W)) for g in range(0, W.shape[1], group)}
    H_inverse = inverse(H)
    for g in range(0, W.shape[1], group):
        for P in itertools.combinations(range(g, g + group), group - keep):
            middle = inverse(H_inverse[list(P)][:, list(P)])
            for i, row in enumerate(W):
                losses[i, g][P] = float(row[list(P)] @ middle @ row[list(P)]) / 2
    return losses


def alps(
    weight: Tensor, gram: Tensor, pattern: tuple, iterations: int = 300, damping: float = 0.01, rho: float = 0.1
) -> tuple[Tensor, int, float]:
    """Mask, iterations and last ρ (arXiv 2406.07831), by the eigenvalues of H in scaled coordinates."""
    W, H = damped(weight, gram, damping)
    n = gram.double().diagonal().sqrt()
    dead = n == 0
    n[dead] = 1
    W, H = W * n, H / n[:, None] / n[None, :]
    values, vectors = torch.linalg.eigh(H)
    before = mask(W.abs(), pattern)
    D, V = W * before, torch.zeros_like(W)
    for step in range(1, iterations + 1):
        B = (W @ H - V + rho * D) @ (vectors / (values + rho) @ vectors.T)
        B[:, dead] = 0  # but for the rounding of the inverse it is
        M = mask((B + V / rho).abs(), pattern)
        D = (B + V / rho) * M
        V = V + rho * (B - D)
        if step % 3 == 0:
            changes, kept = int((M ^ before).sum()), int(M.sum())
            before = M
            if changes == 0:
                break
            rho *= 1.3 if changes >= 0.1 * kept else 1.2 if changes >= 0.005 * kept else 1.1
    return M, step, rho


def ridge(gram: Tensor, damping: float, even: bool = False) -> Tensor:
    """H (in, in): G with damping·diag G, or evenly damping·mean(diag G), added to its diagonal. Dead inputs: 1."""
    H = gram.double().clone()
    diagonal = H.diagonal().clone()
    dead = diagonal == 0
    H.diagonal().add_(damping * (diagonal[~dead].mean() if even else diagonal))
    H[dead, dead] = 1  # they have no effect on the output, so the pull towards the dense weights is all there is
    return H


def damped_error(weight: Tensor, new: Tensor, H: Tensor) -> Tensor:
    """(rows,) (w − v) H (w − v)ᵀ."""
    difference = weight.double() - new.double()
    return ((difference @ H) * difference).sum(dim=1)


def mrp_update(weight: Tensor, gram: Tensor, given: Tensor, solution: str, damping: float = 0.01) -> Tensor:
    """δw = − w_P ([H⁻¹]_PP)⁻¹ [H⁻¹]_{P,:} (arXiv 2410.15567); solution S has the diagonal of [H⁻¹]_PP alone."""
    W, H = weight.double(), ridge(gram, damping, even=True)
    H_inverse, new = inverse(H), torch.zeros_like(W)
    for i, kept in enumerate(given):
        P = (~kept).nonzero()[:, 0]
        middle = H_inverse[P][:, P]
        middle = torch.diag(1 / middle.diagonal()) if solution == "S" else inverse(middle)
        new[i] = (W[i] - W[i, P] @ middle @ H_inverse[P]) * kept
    return new


def pcg(weight: Tensor, gram: Tensor, given: Tensor, iterations: int, damping: float = 0.01) -> Tensor:
    """Conjugate gradients on H_KK v = (Hw)_K, preconditioned by its diagonal, from w_K on; row by row."""
    W, H = weight.double(), ridge(gram, damping)
    new = torch.zeros_like(W)
    for i, kept in enumerate(given):
        A, v = H[kept][:, kept], W[i, kept].clone()
        r = (H @ W[i])[kept] - A @ v
        z = d = r / A.diagonal()
        for _ in range(iterations):
            if float(r @ z) < 1e-26 * float(W[i] @ H @ W[i]):
                break
            alpha = (r @ z) / (d @ A @ d)
            v, after = v + alpha * d, r - alpha * A @ d
            beta = (after @ (after / A.diagonal())) / (r @ z)
            r, z = after, after / A.diagonal()
            d = z + beta * d
        new[i, kept] = v
    return new


def pairs(kept: Tensor, pattern: tuple) -> list[tuple[int, int]]:
    """What a row (in,) may exchange: (u kept, p pruned), of N:M inside one group."""
    size = int(pattern[0].split(":")[1]) if isinstance(pattern[0], str) else len(kept)
    found, m = [], kept.tolist()
    for g in range(0, len(m), size):
        pruned = [p for p in range(g, g + size) if not m[p]]
        found += [(u, p) for u in range(g, g + size) if m[u] for p in pruned]
    return found


def swap_changes(w: Tensor, G: Tensor, kept: Tensor, places: list) -> Tensor:
    """ΔL(u, p) = 2 w_u c_u + w_u² G_uu − 2 w_p c_p + w_p² G_pp − 2 w_u w_p G_up with c = G z (arXiv 2512.10922)."""
    u, p = torch.tensor(places).T
    c = G @ (w * ~kept)
    return 2 * w[u] * c[u] + w[u] ** 2 * G[u, u] - 2 * w[p] * c[p] + w[p] ** 2 * G[p, p] - 2 * w[u] * w[p] * G[u, p]


def sparseswaps(
    weight: Tensor,
    gram: Tensor,
    given: Tensor,
    pattern: tuple,
    max_swaps: int = 1000,
    tolerance: float = 1e-6,
) -> tuple[Tensor, list[list[float]]]:
    """Mask, and of every row its errors before the first and after every swap: of all pairs the best, one by one."""
    W, G, M, errors = weight.double(), gram.double(), given.clone(), []
    for i, w in enumerate(W):
        z = w * ~M[i]
        errors.append([float(z @ G @ z)])
        while len(errors[i]) <= max_swaps:
            places = pairs(M[i], pattern)
            if not places:
                break
            changes = swap_changes(w, G, M[i], places)
            best = int(changes.argmin())
            if changes[best] >= -tolerance * errors[i][-1]:
                break
            u, p = places[best]
            M[i, u], M[i, p] = False, True
            errors[i].append(errors[i][-1] + float(changes[best]))
    return M, errors


def dsnot(
    weight: Tensor, inputs: Tensor, given: Tensor, pattern: tuple, cycles: int = 50, threshold: float = 0.1
) -> tuple[Tensor, list[int]]:
    """Mask and swaps of every row by the inputs' means and variances (arXiv 2310.08915, with the paper's signs)."""
    W, X, M, swaps = weight.double(), inputs.double(), given.clone(), []
    mean, variance, norm = X.mean(dim=0), X.var(dim=0, correction=0), X.norm(dim=0)
    for i, w in enumerate(W):
        swaps.append(0)
        while swaps[i] < cycles:
            error = float((w * mean)[~M[i]].sum())
            if abs(error) <= threshold:
                break
            effect = (w * mean * (1 if error > 0 else -1)).tolist()
            places = [(u, p) for u, p in pairs(M[i], pattern) if effect[u] < 0 < effect[p]]
            if not places:
                break
            p = max((p for _, p in places), key=lambda p: effect[p] / float(variance[p]))
            u = min((u for u, other in places if other == p), key=lambda u: float(w[u].abs() * norm[u]))
            M[i, u], M[i, p] = False, True
            swaps[i] += 1
    return M, swaps


def optimal_errors(w: Tensor, H: Tensor, masks: Tensor) -> Tensor:
    """(n,) wHwᵀ − (Hw)_Kᵀ (H_KK)⁻¹ (Hw)_K: the damped errors of the masked least squares for masks (n, in) of a row."""
    right = H @ w
    if not masks.any():
        return (w @ right).expand(len(masks))
    K = masks.nonzero()[:, 1].view(len(masks), -1)
    factor = torch.linalg.cholesky(H[K[:, :, None], K[:, None, :]])
    return w @ right - (torch.cholesky_solve(right[K][:, :, None], factor)[:, :, 0] * right[K]).sum(dim=1)


def swapped(kept: Tensor, places: list) -> Tensor:
    """(n, in) the masks of a row after each of the exchanges alone."""
    masks = kept.repeat(len(places), 1)
    for mask_, (u, p) in zip(masks, places, strict=True):
        mask_[u], mask_[p] = False, True
    return masks


def swaps_reoptimised(
    weight: Tensor, gram: Tensor, given: Tensor, pattern: tuple, damping: float = 0.01, tolerance: float = 1e-6
) -> tuple[Tensor, list[list[float]]]:
    """Mask and errors as `sparseswaps`, of the damped masked least squares, computed afresh for every pair."""
    W, H, M, errors = weight.double(), ridge(gram, damping), given.clone(), []
    for i, w in enumerate(W):
        w = w * (gram.diagonal() > 0)  # a dead input changes nothing, kept or pruned
        errors.append([float(optimal_errors(w, H, M[i : i + 1]))])
        while places := pairs(M[i], pattern):
            after = optimal_errors(w, H, swapped(M[i], places))
            best = int(after.argmin())
            if errors[i][-1] - after[best] <= tolerance * errors[i][-1] + 1e-12 * float(w @ H @ w):
                break
            u, p = places[best]
            M[i, u], M[i, p] = False, True
            errors[i].append(float(after[best]))
    return M, errors


def exchanges(errors, mask: Tensor) -> list[tuple]:
    """Of every kept (i, u) and pruned (j, p) of a matrix: the change of the layer error, the errors of the rows that
    take part, and the four. errors(i, masks (n, in)) -> (n,) are those of row i, with equally many kept."""
    columns, found = mask.shape[1], []
    own = [float(errors(i, m[None])[0]) for i, m in enumerate(mask)]
    flipped = [mask[i].repeat(columns, 1) ^ torch.eye(columns, dtype=torch.bool) for i in range(len(mask))]
    alone = torch.zeros(mask.shape, dtype=torch.float64)  # one weight pruned or kept, and nothing else
    for i, m in enumerate(mask):
        for which in (m, ~m):
            if which.any():
                alone[i, which] = errors(i, flipped[i][which]) - own[i]
        if places := pairs(m, (0.5, "row")):
            after = errors(i, swapped(m, places)).tolist()
            found += [(e - own[i], own[i], i, u, i, p) for e, (u, p) in zip(after, places, strict=True)]
    places, alone = (~mask).nonzero().tolist(), alone.tolist()
    for i, u in mask.nonzero().tolist():
        found += [(alone[i][u] + alone[j][p], own[i] + own[j], i, u, j, p) for j, p in places if i != j]
    return found


def matrix_swaps(errors, given: Tensor, rounding: float, tolerance: float = 1e-6) -> Tensor:
    """The mask after the best exchanges over all rows, one by one, until none lowers its rows' errors."""
    M = given.clone()
    while True:
        change, share, i, u, j, p = min(exchanges(errors, M))
        if change >= -tolerance * share - rounding:
            return M
        M[i, u], M[j, p] = False, True
