"""The parts of the model between its matrix products, with fewer passes over memory than autograd makes by itself.

On a CPU these parts wait for memory, and each pass autograd records is a tensor written and read again. Here the
gradients are written by hand, in place where nobody looks. Only in float32 on a CPU: elsewhere the plain form is used,
which compilers fuse.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")
EPS = torch.finfo(torch.float32).eps  # what F.rms_norm adds


def _by_hand(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def norm(x: Tensor) -> Tensor:
    """Root-mean-square norm over the last dimension, without a gain."""
    if _by_hand(x):
        return cast(Tensor, _Norm.apply(x))  # type: ignore[no-untyped-call]
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x (B, T, H, D), cos and sin (1, T, 1, D/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


def rotated_norm(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`norm(rotate(x, cos, sin))`."""
    if _by_hand(x):
        return cast(Tensor, _RotatedNorm.apply(x, cos, sin))  # type: ignore[no-untyped-call]
    return norm(rotate(x, cos, sin))


def relu2(x: Tensor) -> Tensor:
    """The square of the positive part."""
    if _by_hand(x):
        return cast(Tensor, _ReLU2.apply(x))  # type: ignore[no-untyped-call]
    return F.relu(x).square()


def mix(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a * x + b * y, with scalars a and b."""
    if _by_hand(x):
        return cast(Tensor, _Mix.apply(x, y, a, b))  # type: ignore[no-untyped-call]
    return a * x + b * y


def once(backward: Callable[..., T]) -> Callable[..., T]:
    """For a `backward` by hand, whose own gradient autograd would get wrong: refuse `create_graph=True`.

    torch's `once_differentiable` is silent where the incoming gradient is a constant.
    """

    @wraps(backward)
    def checked(*arguments: Any) -> T:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True goes not with the lab's gradients written by hand (training.elementwise, "
                "training.loss); write those parts of your model with torch.nn.functional"
            )
        return backward(*arguments)

    return checked


def _inverse_rms(x: Tensor) -> Tensor:
    """(..., C) -> (..., 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return cast(Tensor, length.square_().div_(x.size(-1)).add_(EPS).rsqrt_())


def _norm_gradient(g: Tensor, y: Tensor, inverse: Tensor) -> Tensor:
    """Of y = inverse * x, where `inverse` (..., 1) is that of x's root mean square."""
    along = (g * y).mean(dim=-1, keepdim=True)
    return torch.addcmul(g, y, along, value=-1).mul_(inverse)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse = _inverse_rms(x)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _norm_gradient(grad_outputs[0], *ctx.saved_tensors)


class _RotatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        inverse = _inverse_rms(x)  # a rotation does not change it
        y = _turned(x, cos, sin, 1).mul_(inverse)
        ctx.save_for_backward(y, inverse, cos, sin)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        y, inverse, cos, sin = ctx.saved_tensors
        return _turned(_norm_gradient(grad_outputs[0], y, inverse), cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """`rotate`, or its inverse for -1."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=direction)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=-direction)
    return y


class _ReLU2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.clamp_min(0)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return cast(Tensor, (grad_outputs[0] * positive).mul_(2))


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, a, b)
        return torch.mul(x, a).addcmul_(y, b)

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        g = grad_outputs[0]
        x, y, a, b = ctx.saved_tensors
        flat = g.reshape(-1)
        return g * a, g * b, torch.dot(flat, x.reshape(-1)), torch.dot(flat, y.reshape(-1))
