"""The training loop: one device, a budget in seconds or steps, everything it needs to be stopped and continued."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import canary, checkpoint, checkpoint_folder, extras, generators, report, shares
from training.budget import Clock
from training.canary import Canary
from training.data import PreparedData
from training.distributed import SHARDS, Group, agree_on, whole, write_shards
from training.energy import Meter
from training.evaluate import evaluate, looks_ahead
from training.failure import NotANumber, Preempted, RecipeProblem
from training.flops import flops_per_token
from training.hardware.backend import Backend, Choice
from training.job import CHECKPOINTS, METRICS, Job
from training.loader import Rows, TrainingLoader, evaluation_rows
from training.optim import set_dtype, set_rates
from training.profile import Profiler
from training.recipe_code import Builders, check_loss
from training.report import Reporter, say
from training.schedule import rates
from training.score import Evaluation
from training.size import saves_on_the_way
from training.snapshot import Writer
from training.trackers import Tracker
from training.utilisation import Utilisation
from training.validation import ValidationCurve
from workspace import clock, durable
from workspace.errors import Refused

SMOOTHING = 0.95  # of the training loss in the summary


class _Interrupted(Exception):
    """A signal came in the middle of a step or an evaluation."""


class Trainer:
    """Builds everything a run needs, then `train()`."""

    def __init__(
        self, job: Job, data: PreparedData, backend: Backend, builders: Builders, group: Group | None = None
    ) -> None:
        self.job, self.config, self.data, self.backend = job, job.config, data, backend
        self.group = group or Group()
        self.stop_requested = False
        config = self.config
        extras.check(config, backend.kind)
        shares.check(config, self.group.world)
        if config.deterministic:
            backend.deterministic()
        cache = job.workspace.cache_dir
        self.dtype_choice = self.group.first_then_others(lambda: backend.dtype_choice(config.dtype, cache))
        self.dtype = cast(torch.dtype, getattr(torch, self.dtype_choice.used))
        self.canary = self._send_canary()
        seconds = config.budget.amount if config.budget.kind == "seconds" else None
        self.compile_choice: Choice = backend.compile_choice(config.compile, seconds)
        torch.manual_seed(config.seed)
        model = builders.model(config).to(backend.device)
        with self.precision():
            self.flops_per_token = flops_per_token(model, config, backend.device)
        peaks = backend.peak_flops(self.dtype), self.canary.peak_flops(self.dtype_choice.used)
        self.utilisation = Utilisation(self.flops_per_token, self.group.world, *peaks)
        self.model = self.group.shard(model)
        self.optimizer = builders.optimizer(self.model, config)
        pays = self.group.first_then_others(lambda: backend.dtype_that_pays(self.dtype_choice, cache))
        set_dtype(self.optimizer, pays)
        self.loss_of = self.group.averaged(self.model, self._loss_function())
        ids = data.ids("train")
        self.loader = TrainingLoader(ids, config.data.context, data.tokenizer.bos, config.seed)
        self.everyones_rows = config.batch.rows * self.group.world  # of one part of a step
        self.byte_lengths = torch.from_numpy(data.tokenizer.byte_lengths())
        self.clock = Clock(self.config, self.flops_per_token)
        self.smooth_loss = self.warm_up_seconds = 0.0
        self.reporter = self._reporter()
        self.writer = Writer(job.folder / CHECKPOINTS, config.checkpoint.keep)
        first = self.group.first
        self.tracker = Tracker(config.tracker if first else "none", job.folder, config.model_dump(mode="json"))
        self.profiler = Profiler(job.folder, config.profile.steps if first else 0)
        self.meter = Meter(backend, first=first)
        self.curve = ValidationCurve()
        self.stopped_early: str | None = None
        self.devices: list[dict[str, float]] = []  # of several processes, at the newest step
        self._forward_seconds = 0.0
        self._stop_agreed = self._save_agreed = False
        self._template: dict[str, Any] = {}
        self._quick_done = 0
        self._saved_at = time.monotonic()

    def _send_canary(self) -> Canary:
        """Measure the machine before the model is on it; the record is in the run's folder from the start."""
        result = canary.measure(self.backend.device, canary.length_s(self.config), self.backend.synchronize)
        if self.group.first:
            durable.write_json(self.job.folder / canary.FILE, {"time": clock.now()} | result.as_json())
        return result

    def stop(self) -> None:
        """Ask the run to end after this part of a step, with a checkpoint."""
        self.stop_requested = True

    # -- the run --

    def train(self) -> None:
        """Train until the budget is spent. Raises `NotANumber`, `Preempted`, and what torch raises without memory."""
        self.backend.reset_peak_memory()
        self.warm_up()
        if self.job.resume_from is not None:
            self._resume()
        elif self.group.first:
            report.drop_after(self.job.folder / METRICS, -1)
        gc.collect()
        gc.freeze()  # the collector need not walk the libraries again; without this it costs a pause now and then
        self._saved_at = time.monotonic()
        self.meter.start(self.clock.tokens)
        try:
            while self.clock.progress < 1 and not self.stopped_early:
                self._one_step()
                self._between_steps()
                self.profiler.between_steps()
        except _Interrupted:
            self.save_checkpoint()
            raise Preempted("SIGTERM; the checkpoint is written") from None
        except BaseException:
            with contextlib.suppress(OSError):  # what ended the run is the news
                self.writer.finish()
            raise
        finally:
            gc.unfreeze()
            self.profiler.close()
            self.tracker.close()
        self.save_checkpoint()

    def _one_step(self) -> None:
        if self._stop_agreed or (self.stop_requested and self.group.world == 1):
            raise _Interrupted
        due = self.reporter.is_due()
        step_rates = rates(self.config, self.clock.progress)
        before, drawn = self.loader.state_dict(), generators.take(self.backend.device)
        started = time.perf_counter()
        set_rates(self.optimizer, step_rates)
        try:
            loss = self._gradients(self._next_rows)
        except _Interrupted:  # nothing of this step has happened: loader and random numbers go back too
            self.loader.load_state_dict(before)
            generators.put(drawn, self.backend.device)
            self.optimizer.zero_grad(set_to_none=True)
            raise
        grad_norm = self._gradient_norm(measure=due)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loader.read_ahead(self.everyones_rows)  # while the device computes what it was given
        value = loss.item()  # waits for the device
        took = time.perf_counter() - started
        self.clock.steps += 1
        value, took = self._agree(value, took)
        self.clock.seconds += took
        if not math.isfinite(value):
            raise NotANumber(f"the loss is {value} at step {self.clock.steps}")
        self.smooth_loss = SMOOTHING * self.smooth_loss + (1 - SMOOTHING) * value
        done = self.clock.progress
        if due or done >= 1:
            if self.group.world == 1:
                self.meter.note(self.meter.joules(), self.clock.tokens)
            self._report_step(value, grad_norm, step_rates.lr, took, done)

    def _agree(self, loss: float, took: float) -> tuple[float, float]:
        """Mean loss and the first process's time; whether to stop or to save is decided for all at once."""
        every = self.config.checkpoint.every_seconds
        save = bool(every) and time.monotonic() - self._saved_at >= every
        mine = [loss, took, self.stop_requested, save, self._forward_seconds, self.backend.memory_now_bytes()]
        joules = self.meter.joules() if self.group.world > 1 else None
        values = self.group.share([*mine, math.nan if joules is None else joules])
        self._stop_agreed, self._save_agreed = bool(values[:, 2].any()), bool(values[0, 3])
        if self.group.world > 1:
            names = ("forward_seconds", "memory_bytes")
            self.devices = [dict(zip(names, map(float, row[4:6]), strict=True)) for row in values]
            self.meter.note(float(values[:, 6].sum()), self.clock.tokens)  # NaN when one of them reads nothing
        return float(values[:, 0].mean()), float(values[0, 1])

    def _gradients(self, next_rows: Any) -> Tensor:
        """Accumulate the gradients of one step; the mean loss, still on the device."""
        parts = self.config.batch.tokens // (self.everyones_rows * self.config.data.context)
        total = torch.zeros((), device=self.backend.device)
        self._forward_seconds = 0.0
        for part in range(parts):
            if part and self.stop_requested and self.group.world == 1:
                raise _Interrupted
            inputs, targets = next_rows()
            started = time.perf_counter()
            with self.precision():
                loss = self.loss_of(inputs, targets) / parts
            self._forward_seconds += time.perf_counter() - started
            torch.autograd.backward(loss)
            total += loss.detach()
        return total

    def _next_rows(self) -> tuple[Tensor, Tensor]:
        return self._to_device(self.group.own(self.loader.next(self.everyones_rows)))

    def _to_device(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Rows (B, T + 1) as inputs and targets (B, T) on the device."""
        ids = torch.from_numpy(rows)
        if self.backend.device.type == "cuda":
            ids = ids.pin_memory().to(self.backend.device, non_blocking=True)
        else:
            ids = ids.to(self.backend.device)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def _gradient_norm(self, *, measure: bool) -> float | None:
        limit = self.config.optimizer.grad_clip
        if limit:
            return float(whole(nn.utils.clip_grad_norm_(self.model.parameters(), limit)))
        if not measure and not self.group.sharded:  # a sharded one is asked for by all, whoever reports
            return None
        return float(whole(nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])))

    def warm_up(self) -> None:
        """Compile, fill caches and allocators on made-up tokens, then undo what that taught the model."""
        started = time.perf_counter()
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        fresh = copy.deepcopy(self.optimizer.state_dict())  # a recipe's optimizer may have state before its first step
        drawn = generators.take(self.backend.device)
        shape = (self.config.batch.rows, self.config.data.context + 1)
        vocab = self.config.data.vocab_size
        rows = np.random.default_rng(0).integers(vocab, size=shape, dtype=np.int64)
        set_rates(self.optimizer, rates(self.config, 0.0))
        inputs, targets = self._to_device(rows)
        for _ in range(1 if self.backend.kind == "cpu" else 3):
            with self.precision():
                loss = self.loss_of(inputs, targets)
            check_loss(loss)
            torch.autograd.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.backend.synchronize()
        if self.group.sharded:  # elsewhere it would only hold memory
            self._template = self.optimizer.state_dict()
        if saves_on_the_way(self.config) and self.group.first and not self.group.sharded:
            self.writer.reserve(self._content())
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(fresh)
        generators.put(drawn, self.backend.device)
        self.warm_up_seconds = time.perf_counter() - started

    # -- evaluation and checkpoints --

    def _between_steps(self) -> None:
        progress = self.clock.progress
        count = self.config.evaluation.quick_count
        if self._quick_done < count and (self._quick_done + 1) / (count + 1) <= progress < 1:
            result = self._evaluate(self.quick_rows)
            self._quick_done = int(progress * (count + 1))
            self._judge(result)
            metrics = self.job.folder / METRICS
            report.evaluated(metrics, self.clock.steps, self.clock.seconds, result.as_json(), full=False)
            self.tracker.log({"step": self.clock.steps} | result.as_json())
        if self._save_agreed:
            self.save_checkpoint(wait=False)

    def _judge(self, result: Evaluation) -> None:
        """Add an evaluation to the curve, and stop early where the recipe asks for it."""
        self.curve.add(self.clock.steps, result.val_bpb)
        self.stopped_early = self.curve.stops(self.config.evaluation)
        if self.stopped_early:
            say(f"Stopped early: {self.stopped_early}")

    @cached_property
    def quick_rows(self) -> Rows:
        return self._validation_rows(self.config.evaluation.quick_bytes)

    def _validation_rows(self, limit: int) -> Rows:
        tokenizer, ids = self.data.tokenizer, self.data.ids("validation")
        rows, _ = evaluation_rows(ids, self.byte_lengths.numpy(), self.config.data.context, tokenizer.bos, limit)
        return rows

    def _evaluate(self, rows: Rows) -> Evaluation:
        def stop_soon() -> None:
            if self.stop_requested and self.group.world == 1:
                raise _Interrupted

        with self.precision():
            ahead = looks_ahead(self.model, rows, len(self.byte_lengths), self.backend.device)
        if ahead is not None:
            raise RecipeProblem(
                f"the model looks ahead: other tokens from {ahead[1]} on change what it predicts at {ahead[0]}",
                fix="mask attention (and anything else over a row) so that a token sees only itself and earlier ones",
            )
        return evaluate(
            self.model, rows, self.byte_lengths,
            device=self.backend.device, context=self.precision, between=stop_soon,
        )  # fmt: skip

    def save_checkpoint(self, *, wait: bool = True) -> None:
        """With `wait` it is on disk when this returns; without, a thread writes it."""
        if self.group.sharded:
            self._save_shards()
        elif not self.group.first:
            pass
        elif wait:
            self.writer.save_now(self._content())
        else:
            self.writer.save(self._content())
        self.group.wait()
        self._saved_at = time.monotonic()

    def _save_shards(self) -> None:
        """All write their part of the optimizer's state, the first one everything else."""
        content = self._content()
        shards = dict(content.optimizer)
        content = replace(content, model={name: whole(value) for name, value in content.model.items()}, optimizer={})
        if not self.group.first:
            write_shards(agree_on(None), shards)
            return
        keep, folder = self.config.checkpoint.keep, self.job.folder / CHECKPOINTS
        checkpoint.write(folder, content, keep, lambda work: write_shards(agree_on(work / SHARDS), shards))

    def _content(self) -> checkpoint.Content:
        state = {
            "step": self.clock.steps,
            "training_seconds": self.clock.seconds,
            "quick_done": self._quick_done,
            "validation": list(self.curve.points),  # a thread writes it down while the curve goes on
            "smooth_loss": self.smooth_loss,
            "loader": self.loader.state_dict(),
            "data": self.data.fingerprint,
        }
        tokenizer = self.data.folder / "tokenizer.json"
        return checkpoint.content_of(self.model, self.optimizer, self.config, state, tokenizer)

    def _resume(self) -> None:
        assert self.job.resume_from is not None
        found = checkpoint.open_checkpoint(self.job.resume_from)
        for part in checkpoint_folder.SAME:
            if getattr(found.config, part) != getattr(self.config, part):
                raise Refused(f"[{part}] differs from the checkpoint's", fix="resume with the same recipe")
        if found.state["data"]["sha256"] != self.data.fingerprint["sha256"]:
            from training.corpus import DataProblem

            raise DataProblem("the corpus changed since the checkpoint", fix="start a new run")
        found.load_model(self.model)
        if self.group.sharded:
            found.load_shards(self.optimizer, self._template)
        else:
            found.load_optimizer(self.optimizer)
        self.loader.load_state_dict(found.state["loader"])
        self.clock.seconds, self.clock.steps = found.state["training_seconds"], found.step
        self.curve = ValidationCurve([tuple(point) for point in found.state["validation"]])
        self.stopped_early = self.curve.stops(self.config.evaluation)
        self.smooth_loss = found.state["smooth_loss"]
        by_now = int(self.clock.progress * (self.config.evaluation.quick_count + 1))  # fewer, of a larger budget
        self._quick_done = min(found.state["quick_done"], by_now)
        if self.group.first:
            report.drop_after(self.job.folder / METRICS, found.step)
        say(f"resumed from {found.folder.name} after {self.clock.seconds:.1f} s of training")

    # -- small parts --

    def precision(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.backend.device.type, dtype=self.dtype)

    def _loss_function(self) -> Any:
        own = getattr(self.model, "loss", None)
        function = own if callable(own) else self._loss_of_logits
        return self.backend.compile(function) if self.compile_choice.used == "on" else function

    def _loss_of_logits(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.model(inputs).float().flatten(0, 1), targets.flatten())

    @property
    def train_loss(self) -> float | None:
        """The smoothed training loss, nats a token; None before the first step."""
        return self.smooth_loss / (1 - SMOOTHING**self.clock.steps) if self.clock.steps else None

    def _report_step(self, loss: float, grad_norm: float | None, lr: float, took: float, progress: float) -> None:
        tokens = self.config.batch.tokens
        rate = tokens / took
        record = {
            "step": self.clock.steps,
            "elapsed_s": round(self.clock.seconds, 3),
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens": self.clock.steps * tokens,
            "tokens_per_s": round(rate, 1),
            "mfu": self.utilisation.mfu(rate),
            "memory_bytes": self.backend.memory_now_bytes(),
            "progress": round(progress, 5),
            "devices": self.devices or None,
        } | self.meter.since_last()
        self.tracker.log(record)
        self.reporter.step(record, progress=min(progress, 1.0), eta_s=self.clock.eta_s())

    def _reporter(self) -> Reporter:
        cpu = self.backend.kind == "cpu"
        index = self.job.device_index if self.job.device_index is not None else self.backend.device.index or 0
        return Reporter(
            self.job.folder / METRICS,
            device_label="CPU" if cpu else f"GPU {index}",
            memory_word="resident" if cpu else "allocated",
            memory_total=self.backend.memory_total_bytes,
        )
