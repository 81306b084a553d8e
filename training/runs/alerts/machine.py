"""Rules on what the machine does meanwhile: the devices a run holds, and the disk it writes to."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from statistics import fmean

from training.hardware.status import LOST, Device
from training.runs.alerts.alert import Alert

START_UP_S = 120.0  # loading and compiling are not training
UTILISATION_S = 300.0  # means over this, so that an evaluation does not count as idleness
LOW_PERCENT = 70.0
IMBALANCE_S = 120.0
IMBALANCE_POINTS = 50.0  # percentage points between the busiest device and the idlest
IDLE_PERCENT = 50.0
HOT_READINGS = 3  # in a row
KNOWN_PART = 0.5  # of a stretch must have been sampled
DISK_S = 600.0
DISK_SHORTEST_S = 120.0
DISK_SOON_S = 1800.0
DISK_LEAST_BYTES = 2**30
DISK_RELIEF_S = 120.0  # after a run was stopped for the disk, until another one is
WRITTEN_LEAST_BYTES = 2**20  # a run that wrote less does not fill a disk
GIB = 2**30
# device uuid, seconds back -> mean utilisation and the part of the stretch that was sampled
Utilisation = Callable[[str, float], tuple[float, float] | None]


class DeviceRules:
    """Rules on the devices of one run."""

    def __init__(self, utilisation: Utilisation) -> None:
        self._utilisation = utilisation
        self._hot: dict[str, int] = defaultdict(int)

    def check(self, devices: Sequence[Device], age_s: float) -> Iterator[Alert]:
        """`devices`: the newest reading of those the run holds; `age_s`: seconds since the run began."""
        for device in devices:
            if device.unusable_because == LOST:
                text = f"{device.id} ({device.name}) {LOST}"
                yield Alert(
                    "device_lost",
                    text,
                    {"device": device.uuid},
                    (f"NVML: GPU is lost ({device.uuid})",),
                    device=device.id,
                )
            elif (alert := self._thermal(device)) is not None:
                yield alert
        if len(devices) > 1 and age_s > START_UP_S + IMBALANCE_S:
            busy = self._means(devices, IMBALANCE_S)
            if len(busy) > 1 and max(busy.values()) - min(busy.values()) > IMBALANCE_POINTS:
                if min(busy.values()) < IDLE_PERCENT:
                    yield _imbalance(busy)
                return
        if age_s > START_UP_S + UTILISATION_S:
            busy = self._means(devices, UTILISATION_S)
            if busy and fmean(busy.values()) < LOW_PERCENT:
                yield _low(busy)

    def _means(self, devices: Sequence[Device], seconds: float) -> dict[str, float]:
        found = {device.id: self._utilisation(device.uuid, seconds) for device in devices}
        return {name: seen[0] for name, seen in found.items() if seen is not None and seen[1] >= KNOWN_PART}

    def _thermal(self, device: Device) -> Alert | None:
        hot = any("thermal" in reason for reason in device.throttle_reasons or [])
        self._hot[device.uuid] = self._hot[device.uuid] + 1 if hot else 0
        if self._hot[device.uuid] < HOT_READINGS:
            return None
        numbers = {
            "temperature_c": device.temperature_c,
            "slowdown_c": device.temperature_slowdown_c,
            "clock_mhz": device.clock_mhz,
            "clock_max_mhz": device.clock_max_mhz,
            "power_w": device.power_w,
        }
        known = {name: value for name, value in numbers.items() if value is not None}
        text = f"{device.id} ({device.name}) is held down by heat"
        if device.temperature_c is not None:
            text += f" at {device.temperature_c:.0f} C"
        reasons = ", ".join(device.throttle_reasons or [])
        return Alert("thermal", text, known, (f"the driver's reasons: {reasons}",), device=device.id)


def _evidence(busy: dict[str, float], seconds: float) -> tuple[str, ...]:
    """The readings an alert on utilisation rests on, a line for each device."""
    return tuple(f"telemetry.db: {name} busy {value:.1f} %, mean of {seconds:.0f} s" for name, value in busy.items())


def _imbalance(busy: dict[str, float]) -> Alert:
    most, least = max(busy, key=lambda name: busy[name]), min(busy, key=lambda name: busy[name])
    text = f"{most} is used by {busy[most]:.0f} %, {least} by {busy[least]:.0f} %, over {IMBALANCE_S:.0f} s"
    numbers = {f"{name} percent": value for name, value in busy.items()}
    return Alert("imbalance", text, numbers, _evidence(busy, IMBALANCE_S))


def _low(busy: dict[str, float]) -> Alert:
    each = ", ".join(f"{name} {value:.0f} %" for name, value in busy.items())
    text = f"used by {fmean(busy.values()):.0f} % over {UTILISATION_S / 60:.0f} minutes ({each})"
    numbers = {f"{name} percent": value for name, value in busy.items()}
    return Alert("utilisation_low", text, numbers, _evidence(busy, UTILISATION_S))


class DiskRule:
    """Free space on the disk of the runs, over the last ten minutes."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()  # monotonic seconds, free bytes

    def check(self, now: float, free: int) -> Alert | None:
        """An alert when it is full, or soon will be: at the rate of the last minutes, without a moment of relief."""
        self._seen.append((now, free))
        while self._seen[0][0] < now - DISK_S:
            self._seen.popleft()
        began, before = self._seen[0]
        numbers = {"free_bytes": free}
        seen = tuple(f"{now - at:.0f} s ago {bytes_free / GIB:.2f} GiB were free" for at, bytes_free in self._seen)
        if free < DISK_LEAST_BYTES:
            return Alert("disk_filling", f"only {free / GIB:.2f} GiB are free on the disk of the runs", numbers, seen)
        falling = all(later[1] <= earlier[1] for earlier, later in pairwise(self._seen))
        if now - began < DISK_SHORTEST_S or not falling or free >= before:
            return None
        rate = (before - free) / (now - began)
        if free / rate > DISK_SOON_S:
            return None
        text = f"{free / GIB:.1f} GiB are free, and at the rate of the last {(now - began) / 60:.0f} minutes full in "
        text += f"{free / rate / 60:.0f} minutes"
        return Alert("disk_filling", text, numbers | {"bytes_per_s": int(rate), "full_in_s": int(free / rate)}, seen)


class Written:
    """How much each run's folder grew over the last ten minutes."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[str, int]]] = deque()  # monotonic seconds, bytes by run

    def add(self, now: float, sizes: dict[str, int]) -> None:
        self._seen.append((now, sizes))
        while self._seen[0][0] < now - DISK_S:
            self._seen.popleft()

    def most(self) -> tuple[str, int] | None:
        """The live run that grew most, and by how much; None when none of them fills the disk."""
        latest = self._seen[-1][1] if self._seen else {}
        grown = {run: size - self._first(run) for run, size in latest.items()}
        run = max(grown, key=lambda name: grown[name], default=None)
        return None if run is None or grown[run] < WRITTEN_LEAST_BYTES else (run, grown[run])

    def _first(self, run: str) -> int:
        return next(sizes[run] for _, sizes in self._seen if run in sizes)
