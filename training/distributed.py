"""Several devices, one process each, under torchrun: the same training at the same global batch, shared out.

ddp: every process has the whole model, gradients are averaged while they are made (DistributedDataParallel).
fsdp: parameters, gradients and AdamW's moments are sharded (FSDP2, `fully_shard`); Muon's step needs whole matrices, so
each process gathers them for it and keeps its part of the result.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.hardware.backend import chosen
from training.loader import Rows

Loss = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T")
CPU = torch.device("cpu")
SHARDS = "shards"  # folder of a checkpoint: the optimizer's tensors, written by all processes


@dataclass(frozen=True)
class Group:
    """The processes of one run, and which of them this is."""

    kind: str = "none"
    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        return self.kind == "fsdp"

    def own(self, rows: Rows) -> Rows:
        """This process's part of rows for all."""
        count = len(rows) // self.world
        return rows[self.rank * count : (self.rank + 1) * count]

    def share(self, values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(world, len(values)): the values of every process."""
        if self.kind == "none":
            return np.array([values])
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        every = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(every, mine)
        return torch.stack(every).cpu().numpy()

    def first_then_others(self, function: Callable[[], T]) -> T:
        """What the first process finds out and keeps in a file, the others read there."""
        if not self.first:
            self.wait()
        found = function()
        if self.first:
            self.wait()
        return found

    def wait(self) -> None:
        if self.kind != "none":
            dist.barrier()

    def shard(self, model: nn.Module) -> nn.Module:
        """Under fsdp: each layer, and the rest, in parts; before the optimizer is built."""
        if not self.sharded:
            return model
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh(self.device.type, (self.world,))
        for layer in getattr(model, "blocks", []):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if callable(getattr(model, "loss", None)):
            register_fsdp_forward_method(model, "loss")
        return model

    def averaged(self, model: nn.Module, loss: Loss) -> Loss:
        """Under ddp: `loss` whose backward pass averages the gradients of `model` over all processes."""
        if self.kind != "ddp":
            return loss
        wrapped: Loss = nn.parallel.DistributedDataParallel(_LossOf(model, loss))
        return wrapped


class _LossOf(nn.Module):
    """A loss as a forward pass: DistributedDataParallel sees only those."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(inputs, targets)


@contextlib.contextmanager
def joined(kind: str) -> Iterator[Group]:
    """The group this process belongs to, by torchrun's variables; alone where kind is "none"."""
    if kind == "none":
        yield Group()
        return
    rank, world, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = chosen() in ("cuda", "rocm")
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Group(kind, rank, world, device)
    finally:
        dist.destroy_process_group()


# -- sharded tensors --------------------------------------------------------------------------------------------------


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """`tensor` itself, or the whole of one that is sharded; all processes must ask."""
    parts: Any = tensor
    full: Tensor = parts.full_tensor() if is_sharded(tensor) else tensor
    return full


def put(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole value into a tensor, or this process's part of it into a sharded one."""
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        parts: Any = tensor
        value = distribute_tensor(value.to(tensor.device), parts.device_mesh, parts.placements, src_data_rank=None)
    tensor.copy_(value)


@contextlib.contextmanager
def gathered(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters with their gradients, whole, for a step that needs whole matrices; what it changes is kept."""
    if not parameters or not is_sharded(parameters[0]):
        yield parameters
        return
    full = []
    for p in parameters:
        tensor = whole(p.detach())
        tensor.grad = None if p.grad is None else whole(p.grad)
        full.append(tensor)
    yield full
    for p, tensor in zip(parameters, full, strict=True):
        put(p.detach(), tensor)


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Every process writes its part of `tensors`; all must call this."""
    from torch.distributed.checkpoint.state_dict_saver import save

    save(tensors, checkpoint_id=folder)


def read_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors`, whatever number of processes wrote them; all must call this."""
    from torch.distributed.checkpoint.state_dict_loader import load

    load(tensors, checkpoint_id=folder)


def agree_on(path: Path | None) -> Path:
    """The first process's path, told to all."""
    told = [None if path is None else str(path)]
    dist.broadcast_object_list(told, src=0)
    return Path(str(told[0]))
