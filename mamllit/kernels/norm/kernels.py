"""The arithmetic of `mamllit.kernels.norm.normalise`: a norm with shift and ReLU, its first and its second derivative.

x [n, H, W, C] gives the statistics, p [n, h, w, C] is what is normalised by them (None: x itself; else x after pooling). A
batch of tasks has one dimension more in front. With N = n H W, xhat = (x - mean) r, phat = (p - mean) r and
r = (variance + eps)^-1/2: z = relu(phat + shift). One number per channel is [(T,) 1, 1, 1, C].
S. Ioffe, C. Szegedy: Batch Normalization, ICML 2015, section 3.
"""

import torch
from torch import Tensor


def forward(x: Tensor, p: Tensor | None, shift: Tensor, eps: float, relu: bool, *out: Tensor) -> list[Tensor]:
    """z like p (or x), and the statistics mean and r; `shift` may be [C]. Here and below, `out` is where large results go."""
    centred, mean, r = _statistics(x, eps)
    to = out[0] if out else None
    z = torch.addcmul(shift, centred, r, out=to) if p is None else torch.addcmul(shift - mean * r, p, r, out=to)
    if relu:
        z = z.relu_() if out else torch.relu(z)
    return [z, mean, r]


def first(
    g: Tensor, x: Tensor, p: Tensor | None, z: Tensor, mean: Tensor, r: Tensor, eps: float, relu: bool, *out: Tensor
) -> list[Tensor]:
    """For g like z, the gradients: to x, where there is one to p, sum of g (to the shift), and sum of g phat / N."""
    g = masked(g, z) if relu else g
    total, n = sum_rows(g), row_count(x)
    hat = torch.addcmul(-mean * r, x if p is None else p, r)
    b = sum_rows(g * hat) / n
    to = out or (None, None)
    if p is None:
        return [torch.addcmul(-total / n * r, torch.addcmul(g, hat, -b), r, out=to[0]), total, b]
    to_x = torch.addcmul(r * (r * mean * b - total / n), x, -r.square() * b, out=to[0])
    return [to_x, torch.mul(g, r, out=to[1]), total, b]


def second(
    u: Tensor, up: Tensor | None, v: Tensor,
    g: Tensor, x: Tensor, p: Tensor | None, z: Tensor, mean: Tensor, r: Tensor, total: Tensor, b: Tensor,
    eps: float, relu: bool, *out: Tensor,
) -> list[Tensor]:  # fmt: skip
    """The gradients of <u, to x> + <up, to p> + <v, sum of g> with respect to g, x and, where there is one, p.

    Where autograd records, mean, r, total and b are made again, so that it can differentiate a third time.
    """
    g, n, again = masked(g, z) if relu else g, row_count(x), torch.is_grad_enabled()
    if again:
        _, mean, r = _statistics(x, eps)
    xhat = torch.addcmul(-mean * r, x, r)
    phat = xhat if p is None else torch.addcmul(-mean * r, p, r)
    if again:
        total, b = sum_rows(g), sum_rows(g * phat) / n
    a, weight, r2 = total / n, u if up is None else up, r.square()
    u1, u2 = sum_rows(u) / n, sum_rows(u * xhat) / n
    slope = sum_rows(weight * g) / n - u1 * a - u2 * b
    to = out or (None, None, None)
    to_g = torch.addcmul(torch.addcmul(v - r * u1, weight, r), phat, -r * u2, out=to[0])
    if relu:
        to_g = torch.ops.aten.threshold_backward.grad_input(to_g, z, 0, grad_input=to_g) if out else masked(to_g, z)
    to_x = torch.addcmul(r2 * (u1 * b + a * u2), u, -r2 * b)
    if p is None:
        to_x = torch.addcmul(to_x, g, -r2 * u2)
    to_x = torch.addcmul(to_x, xhat, r2 * (2 * u2 * b - slope), out=to[1])
    return [to_g, to_x] if p is None else [to_g, to_x, torch.mul(g, -r2 * u2, out=to[2])]


def row_count(x: Tensor) -> int:
    return x.shape[-4] * x.shape[-3] * x.shape[-2]


def sum_rows(x: Tensor) -> Tensor:
    """Over all but channels and tasks, as one dimension: a sum over several is slow."""
    return x.flatten(-4, -2).sum(-2)[..., None, None, None, :]


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    n = row_count(x)
    mean = sum_rows(x) / n
    centred = x - mean
    return centred, mean, torch.rsqrt(sum_rows(centred.square()) / n + eps)  # faster than torch.var_mean on a CPU


def masked(g: Tensor, z: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(g, z, 0)
