"""Cross-entropy of a linear head with soft-capped logits, computed a chunk of tokens at a time.

The logits of a whole batch are the largest tensor of a small model (tokens x vocabulary, several copies in a plain
backward pass). Here the gradient is taken chunk by chunk during the forward pass, so only one chunk ever exists and
on a CPU it stays near the cache; the idea is Liger's fused linear cross-entropy (linkedin/Liger-Kernel).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.elementwise import once
from training.size import loss_chunk_tokens


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
        """x (N, C), weight (V, C), targets (N,) -> mean of -log p(target), float32 scalar."""
        count = x.size(0)
        at_once = loss_chunk_tokens(weight.size(0), cpu=x.device.type == "cpu")
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, count, at_once):
            rows = slice(start, start + at_once)
            chunk, target = x[rows], targets[rows].unsqueeze(1)
            logits = (chunk @ weight.to(chunk.dtype).t()).float()  # (n, V)
            if softcap:
                bent = logits.div_(softcap).tanh_()  # slope of the cap is 1 - bent^2
                capped = bent * softcap
            else:
                bent, capped = logits, logits
            log_z = torch.logsumexp(capped, dim=1, keepdim=True)
            total += (log_z - capped.gather(1, target)).sum()
            gradient = capped.sub_(log_z).exp_() if softcap else (capped - log_z).exp_()  # probabilities
            gradient.scatter_add_(1, target, torch.full_like(log_z, -1.0))
            if softcap:
                gradient.mul_(bent.square_().neg_().add_(1.0))
            gradient = gradient.div_(count).to(chunk.dtype)
            torch.mm(gradient, weight.to(chunk.dtype), out=grad_x[rows])
            grad_weight.addmm_(gradient.t().float(), chunk.float())
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total / count

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        return grad_x * scale.to(grad_x.dtype), (grad_weight * scale).to(ctx.weight_dtype), None, None


def cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Mean nats of `targets` (N,) under softcap * tanh(x @ weight.T / softcap); softcap 0 means none.

    x (N, C), weight (V, C). On a GPU under torch.compile the plain form is used: the compiler fuses it itself.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        logits = F.linear(x, weight).float()
        return F.cross_entropy(softcap * torch.tanh(logits / softcap) if softcap else logits, targets)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    result: Tensor = _ChunkedCrossEntropy.apply(x, weight, targets, softcap)  # type: ignore[no-untyped-call]
    return result
