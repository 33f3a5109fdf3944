"""Singular values of the Jacobian of a whole network at a given image."""

from bisect import bisect_left
from itertools import accumulate

import torch

from .network import trace_points

# Up to this many singular values the Jacobian is formed; above, its density is estimated
EXACT_UP_TO = 1024
# Of the estimate: steps of Lanczos' method, and random vectors it starts from, which are worked on together
LANCZOS_STEPS = 32
PROBES = 4


def measure_jacobian(network, image):
    """Singular values of the Jacobian of the last block's output at one image.

    Up to EXACT_UP_TO of them the Jacobian is formed row by row by vector-Jacobian products, or column by
    column by Jacobian-vector products, whichever are fewer. Above, Lanczos' method on J J^T (or J^T J) from
    PROBES random directions gives their density: as many values as steps and directions, each with the share
    of the spectrum that it stands for. The largest one is found well, the smallest are not to be relied on.
    Jacobian-vector products are taken as the derivative of the vector-Jacobian product in its vector, in
    which it is linear; so both are of the same J, to rounding.

    Args:
        network (nn.Module): in evaluation mode; for Lanczos' method better in float64.
        image (Tensor): (1, C, H, W), the network's input, in the network's dtype.

    Returns:
        dict[str, dict]: "image": from the network's input, and, where there is a stem, "stem": from its
        output; each with ``values``, descending, ``shares``, which add up to 1, of min(rows, columns) values
        in all, ``method``, "exact" or "lanczos", ``rows``, ``columns`` and what
        :func:`summarize_spectrum` gives.
    """
    points, images = trace_points(network, image.expand(PROBES, -1, -1, -1))
    first = next(iter(points))
    starts = {"image": images} | ({"stem": points["stem"]} if first == "stem" else {})
    last = list(points.values())[-1]
    return {name: _spectrum(start, last) for name, start in starts.items()}


def summarize_spectrum(values, shares):
    """A density of singular values in a few numbers.

    What lies below a thousandth of the largest counts as zero: strides, pooling and activations take
    directions away from any network.

    Args:
        values (sequence[float]): descending.
        shares (sequence[float]): of each value.

    Returns:
        dict[str, float]: ``share``, that of the values that are not zero, and of these ``max``, ``q95``,
        ``median`` and ``q05``: 5 %, 50 % and 95 % of them are not smaller than the last three.
    """
    above = [(v, s) for v, s in zip(values, shares, strict=True) if v > 1e-3 * values[0]]
    so_far = list(accumulate(share for _, share in above))
    total = so_far[-1] if above else 0.0
    quantiles = {
        name: above[bisect_left(so_far, level * total * (1 - 1e-9))][0] if above else 0.0
        for name, level in (("q95", 0.05), ("median", 0.5), ("q05", 0.95))
    }
    return {"share": total, "max": values[0], **quantiles}


def _spectrum(start, end):
    """The entry of one start, both batches of PROBES copies of one image, joined by a graph."""
    cotangent = torch.zeros_like(end, requires_grad=True)
    (pulled,) = torch.autograd.grad(end, start, cotangent, create_graph=True)

    def pull(vectors):  # (PROBES, rows) -> (PROBES, columns), J^T v
        return torch.autograd.grad(end, start, vectors.view_as(end), retain_graph=True)[0].flatten(1)

    def push(vectors):  # (PROBES, columns) -> (PROBES, rows), J v
        return torch.autograd.grad(pulled, cotangent, vectors.view_as(start), retain_graph=True)[0].flatten(1)

    rows, columns = end[0].numel(), start[0].numel()
    size = min(rows, columns)
    apply, apply_back = (pull, push) if rows <= columns else (push, pull)
    if size <= EXACT_UP_TO:
        values, shares, method = _exact_values(apply, size, end).tolist(), [1 / size] * size, "exact"
    else:
        density = _lanczos(lambda v: apply_back(apply(v)), size, end)
        (values, shares), method = (part.tolist() for part in density), "lanczos"
    return {
        "rows": rows,
        "columns": columns,
        "method": method,
        **summarize_spectrum(values, shares),
        "values": values,
        "shares": shares,
    }


def _exact_values(apply, size, like):
    padded = -(-size // PROBES) * PROBES  # with rows of zeros
    basis = torch.eye(padded, size, dtype=like.dtype, device=like.device)
    return torch.linalg.svdvals(torch.cat([apply(part) for part in basis.split(PROBES)])[:size])


def _lanczos(apply, size, like):
    """Density of the square roots of the eigenvalues of a symmetric positive operator of `size` dimensions.

    Stochastic Lanczos quadrature: the eigenvalues of the tridiagonal matrix are the nodes, the squares of the
    first components of its eigenvectors the shares. After each step the new vector is made orthogonal to all
    before it. Where none is left the next one is rounding, which an entry of about 0 joins to the rest of the
    tridiagonal matrix, and so has no share.
    """
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(PROBES, size, generator=generator, dtype=torch.float64).to(like.device, like.dtype)
    q = q / q.norm(dim=1, keepdim=True)
    basis, diagonal, beside = [q], [], []
    for _ in range(LANCZOS_STEPS):
        w = apply(basis[-1])
        diagonal.append((w * basis[-1]).sum(1))
        stacked = torch.stack(basis, dim=1)  # (PROBES, steps, size)
        for _ in range(2):  # once leaves what rounding does
            w = w - torch.einsum("bs,bsn->bn", torch.einsum("bsn,bn->bs", stacked, w), stacked)
        norm = w.norm(dim=1, keepdim=True)
        beside.append(norm[:, 0])
        basis.append(w / norm.clamp(min=torch.finfo(w.dtype).tiny))
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    off = torch.diag_embed(torch.stack(beside[:-1], 1), offset=1)
    nodes, vectors = torch.linalg.eigh(matrix + off + off.mT)
    values, shares = nodes.clamp(min=0).sqrt().flatten(), vectors[:, 0].square().flatten() / PROBES
    order = values.argsort(descending=True)
    order = order[shares[order] > 1e-12]
    return values[order], shares[order]
