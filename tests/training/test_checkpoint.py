"""Checkpoints appear whole or not at all, and nothing is taken for one that is not."""

from __future__ import annotations

import copy
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from training_support import small

from training import checkpoint, tensor_file
from training.checkpoint import Content, open_checkpoint
from training.snapshot import Writer
from workspace.errors import LabError, NotFound, Refused


class Parts:
    """A model, an optimizer that has made a step, and where checkpoints go."""

    def __init__(self, root: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.folder = root / "checkpoints"
        self.tokenizer = root / "tokenizer.json"
        self.tokenizer.write_text("{}")
        self.step()

    def step(self) -> None:
        self.model(torch.randn(4, 5)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def content(self, step: int) -> Content:
        return checkpoint.content_of(self.model, self.optimizer, small(), {"step": step}, self.tokenizer)

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, tensor_file.BUFFER_BYTES, tensor_file.BUFFER_BYTES + 4097])
def test_tensors_come_back_whatever_their_size(tmp_path: Path, size: int) -> None:
    draw = torch.Generator().manual_seed(size)
    tensors = {
        "bytes": torch.randint(256, (size,), dtype=torch.uint8, generator=draw),
        "half": torch.randn(3, 5, generator=draw).bfloat16(),
        "scalar": torch.tensor(3.5),
        "turned": torch.randn(4, 6, generator=draw).t(),
        "truth": torch.tensor([True, False]),
    }
    tensor_file.write(tmp_path / "file", tensors)
    assert same(load_file(tmp_path / "file"), {name: tensor.contiguous() for name, tensor in tensors.items()})


def test_a_file_system_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(tensor_file.os, "open", refuse)
    tensor_file.write(tmp_path / "file", {"a": torch.arange(9)})
    assert torch.equal(load_file(tmp_path / "file")["a"], torch.arange(9))


def test_everything_comes_back(parts: Parts) -> None:
    written = parts.weights()
    before = torch.get_rng_state()
    checkpoint.write(parts.folder, parts.content(7), keep=1)
    parts.step()
    state = copy.deepcopy(parts.optimizer.state_dict()["state"])
    parts.step()
    found = open_checkpoint(parts.folder)
    found.load_model(parts.model)
    found.load_optimizer(parts.optimizer)
    assert found.step == 7 and found.config == small()
    assert same(parts.weights(), written)
    assert torch.equal(torch.get_rng_state(), before)
    parts.step()
    again = parts.optimizer.state_dict()["state"]
    assert all(torch.equal(again[i][k], state[i][k]) for i in state for k in state[i])


def test_a_full_disk_leaves_what_was_there(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(parts.folder, parts.content(6), keep=1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.checkpoint.durable.write_json", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(parts.folder, parts.content(99), keep=1)
    assert names(parts.folder) == ["step-00000006"]


@pytest.mark.parametrize("exchange", [True, False])
def test_the_same_step_again_replaces_without_a_gap(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """Nothing is deleted before the new one stands: at every rename and deletion one of the two is there."""
    if not exchange:
        monkeypatch.setattr(checkpoint.ctypes, "CDLL", lambda _: object())
    checkpoint.write(parts.folder, parts.content(6), keep=1)
    parts.step()
    seen: list[int] = []
    real = checkpoint.shutil.rmtree

    def watch(path: Path, **options: Any) -> None:
        seen.append(sum((folder / "state.json").is_file() for folder in parts.folder.iterdir()))
        real(path, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", watch)
    checkpoint.write(parts.folder, parts.content(6), keep=1)
    assert min(seen) >= 1
    assert names(parts.folder) == ["step-00000006"]
    found = open_checkpoint(parts.folder)
    assert torch.equal(load_file(found.folder / "model.safetensors")["0.weight"], parts.model.state_dict()["0.weight"])


def test_tensors_that_share_memory(parts: Parts) -> None:
    parts.model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parts.model[1].weight = parts.model[0].weight
    checkpoint.write(parts.folder, parts.content(1), keep=1)
    open_checkpoint(parts.folder).load_model(parts.model)


# -- what is refused --


def test_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no checkpoint"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "optimizer.pt", "tokenizer.json"])
def test_a_truncated_one_is_refused_with_the_reason(parts: Parts, file: str) -> None:
    folder = checkpoint.write(parts.folder, parts.content(3), keep=1)
    os.truncate(folder / file, 1)
    with pytest.raises(Refused, match=rf"step-00000003 is not whole: {file} is truncated: 1 bytes of \d+"):
        open_checkpoint(parts.folder)
    (folder / file).unlink()
    with pytest.raises(Refused, match="is missing"):
        open_checkpoint(parts.folder)


def test_damage_within_is_refused(parts: Parts) -> None:
    folder = checkpoint.write(parts.folder, parts.content(3), keep=1)
    for file in ("model.safetensors", "optimizer.pt"):
        size = (folder / file).stat().st_size
        (folder / file).write_bytes(b"\xff" * size)
    found = open_checkpoint(parts.folder)
    with pytest.raises(Refused, match="cannot be read"):
        found.load_model(parts.model)
    with pytest.raises(LabError, match="another optimizer"):
        found.load_optimizer(parts.optimizer)
    (folder / "state.json").write_text('{"step"')
    with pytest.raises(Refused, match="damaged"):
        open_checkpoint(parts.folder)


def test_a_foreign_one_is_refused(tmp_path: Path, parts: Parts) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"")
    with pytest.raises(Refused, match=r"has weights but no state\.json"):
        open_checkpoint(other)
    (other / "state.json").write_text(json.dumps({"global_step": 5}))
    (other / "config.json").write_text("{}")
    with pytest.raises(Refused, match="not a checkpoint of this lab"):
        open_checkpoint(other)
    checkpoint.write(parts.folder, parts.content(3), keep=1)
    with pytest.raises(Refused, match="another model"):
        open_checkpoint(parts.folder).load_model(nn.Linear(2, 2))


# -- without waiting --


def test_training_goes_on_while_a_checkpoint_is_written(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on disk later is the state at the moment of saving."""
    may_write = threading.Event()
    real = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *a: (may_write.wait(30), real(*a)))
    writer = Writer(parts.folder, keep=2)
    writer.reserve(parts.content(0))
    saved = parts.weights()
    writer.save(parts.content(1))
    parts.step()
    assert not same(parts.weights(), saved)
    may_write.set()
    writer.finish()
    assert same(load_file(open_checkpoint(parts.folder).folder / "model.safetensors"), saved)
    writer.save(parts.content(2))
    writer.save_now(parts.content(3))
    assert names(parts.folder) == ["step-00000002", "step-00000003"]


def test_what_went_wrong_while_writing_is_told(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.tensor_file.write", full)
    writer = Writer(parts.folder, keep=1)
    writer.save(parts.content(1))
    with pytest.raises(OSError, match="No space"):
        writer.save(parts.content(2))
    writer.finish()
