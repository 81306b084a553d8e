"""Devices: what a run may have, who holds what, and that no device is ever given twice."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runs_support import Bench
from training_support import SMALL, workspace_with_text

from training.hardware.status import DeviceProcess
from training.runs.leases import Leases, release, user_name
from training.runs.placement import GB, Need, environment, fits_beside, need_of, room
from training.runs.prepare import prepare
from training.runs.records import RunRequest
from workspace import durable
from workspace.errors import Refused, Unavailable
from workspace.layout import Workspace
from workspace.settings import Settings


@dataclass(frozen=True)
class Card:
    index: int
    name: str = "NVIDIA GeForce RTX 4080"
    memory_total_bytes: int | None = 16 * GB
    memory_free_bytes: int | None = 16 * GB
    backend: str = "cuda"
    processes: tuple[DeviceProcess, ...] = ()
    trains: bool = True

    @property
    def id(self) -> str:
        return f"{self.backend}:{self.index}"

    @property
    def uuid(self) -> str:
        return f"GPU-0000-{self.index}"


TWO = [Card(0), Card(1)]
MIXED = [Card(0), Card(1, "NVIDIA H200", 141 * GB, 141 * GB)]


@pytest.mark.parametrize(
    ("wish", "devices", "count"),
    [
        ({}, [], 0),
        ({}, TWO, 1),
        ({"prefer_resource": "cpu"}, TWO, 0),
        ({"gpu_count": 0}, TWO, 0),
        ({"gpu_count": 2, "kind": "script"}, TWO, 2),
        ({"prefer_resource": "GPU"}, TWO, 1),
        ({"prefer_resource": "h200"}, MIXED, 1),
        ({"gpu_memory_min_gb": 100}, MIXED, 1),
        ({"gpu_memory_min_gb": 100}, [Card(0, memory_total_bytes=None, memory_free_bytes=None)], 1),
    ],
)
def test_need(wish: dict[str, Any], devices: list[Card], count: int) -> None:
    assert need_of(RunRequest(**wish), devices).count == count


@pytest.mark.parametrize(
    ("wish", "devices", "words"),
    [
        ({"gpu_count": 3, "kind": "script"}, TWO, "cannot give 3 accelerators"),
        ({"gpu_memory_min_gb": 24}, TWO, "cuda:0 NVIDIA GeForce RTX 4080 \\(16 GB\\), cuda:1"),
        ({"gpu_count": 2, "gpu_memory_min_gb": 24, "kind": "script"}, MIXED, "2 accelerators with at least 24 GB"),
        ({"prefer_resource": "NVIDIA H20 0"}, MIXED, "closest: NVIDIA H200"),
        ({"prefer_resource": "gpu"}, [], "only the CPU"),
    ],
)
def test_impossible_needs_are_refused_with_what_there_is(wish: dict[str, Any], devices: list[Card], words: str) -> None:
    with pytest.raises(Refused, match=words):
        need_of(RunRequest(**wish), devices)


SHARED = SMALL | {"parallel.kind": "ddp", "data.files": ["text"]}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_with_text(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parallel.kind": "none"}, "trains on one accelerator"),
        ({"batch.rows": 8}, r"cannot be shared by 2 devices.*Next: batch\.rows = 4"),
        ({"batch.tokens": 384}, r"cannot be shared by 2 devices.*Next: batch\.rows = 3"),
        ({"batch.rows": 1, "batch.tokens": 96}, r"cannot be shared by 2 devices.*Next: batch\.tokens = 128"),
        ({"parallel.processes": 1}, "parallel.processes = 1 on 2 accelerators"),
    ],
)
def test_a_recipe_that_two_devices_cannot_share_is_refused(
    workspace: Workspace, changes: dict[str, Any], words: str
) -> None:
    prepare(RunRequest(gpu_count=2, overrides=SHARED), workspace, Settings(), TWO)
    with pytest.raises(Refused, match=words):
        prepare(RunRequest(gpu_count=2, overrides=SHARED | changes), workspace, Settings(), TWO)


def test_what_a_run_on_the_cpu_may_need_is_known_before_it_starts(workspace: Workspace) -> None:
    """A process that is killed for want of memory can tell nothing any more."""
    found = prepare(RunRequest(overrides=SMALL), workspace, Settings(), [])
    assert found.need.predicted_bytes > 10**8
    assert "The estimate for this configuration is 0." in found.run["memory_advice"]
    (workspace.root / "recipe").mkdir()
    (workspace.root / "recipe" / "model.py").write_text("from training.model import build_model\n")
    found = prepare(RunRequest(overrides=SMALL), workspace, Settings(), [])
    assert not found.need.predicted_bytes and "memory_advice" not in found.run


def test_devices_with_most_room_first_and_full_ones_not_at_all() -> None:
    cards = [Card(0, memory_free_bytes=4 * GB), Card(1), Card(2, memory_free_bytes=1 * GB)]
    need = need_of(RunRequest(gpu_memory_min_gb=2), cards)
    found, without = room(need, cards)
    assert [card.index for card in found] == [1, 0]
    assert without == {"cuda:2": "cuda:2 has 1.0 GB free of the 2 GB asked for"}


def test_a_card_somebody_else_computes_on_is_left_alone() -> None:
    foreign = DeviceProcess(pid=4711, name="python3", user="alice", memory_bytes=9 * GB)
    drawing = DeviceProcess(pid=1, name="Xorg", memory_bytes=GB, graphics=True)
    ours = DeviceProcess(pid=2, name="python3", memory_bytes=9 * GB, owner="run-0001 of workspace lab")
    small = DeviceProcess(pid=3, name="nvtop", memory_bytes=10**6)
    cards = [Card(0, processes=(foreign,)), Card(1, processes=(drawing, ours, small))]
    found, without = room(Need(1), cards)
    assert [card.index for card in found] == [1]
    assert without == {"cuda:0": "cuda:0 is in use by python3 of alice (pid 4711, 9.0 GB), not the lab's"}
    assert len(room(Need(1), cards, with_others=True)[0]) == 2


@pytest.mark.parametrize(
    ("need", "others", "free", "fits"),
    [
        (Need(1), [], 16, True),
        (Need(1), [Need(1)], 16, True),  # two halves
        (Need(1), [Need(1), Need(1)], 16, False),
        (Need(1, 10 * GB), [Need(1)], 16, False),  # promised counts, though nothing of it is used yet
        (Need(1, 6 * GB), [Need(1, 10 * GB)], 6, True),
        (Need(1, 6 * GB), [Need(1, 10 * GB)], 5, False),  # more is used than was promised
        (Need(1, predicted_bytes=2 * GB), [Need(1, 14 * GB)], 16, True),
        (Need(1, predicted_bytes=20 * GB), [], 16, True),  # alone: nothing would be freed by waiting
        (Need(1, predicted_bytes=20 * GB), [Need(1, 1 * GB)], 16, False),
    ],
)
def test_runs_share_a_card_when_their_memory_fits(need: Need, others: list[Need], free: int, fits: bool) -> None:
    assert fits_beside(need, Card(0, memory_free_bytes=free * GB), others, places=2) is fits


def test_two_runs_of_one_workspace_share_a_card_and_no_other_workspace_does(make_bench: Callable[..., Bench]) -> None:
    one = make_bench("eins", devices=lambda: TWO[:1], per_device=2)
    two = make_bench("zwei", devices=lambda: TWO[:1], per_device=2)
    alone = make_bench("drei", devices=lambda: TWO[:1])
    first, second, third = (one.start(WAITS) for _ in range(3))
    other, single = two.start(WAITS), alone.start(WAITS)
    for run_id in (first, second):
        one.printed(run_id, "\n")
        assert one.text(run_id).strip() == "GPU-0000-0"
    assert one.runs.holders([TWO[0].uuid]) == {TWO[0].uuid: first}
    assert one.runs.get(third).state == two.runs.get(other).state == alone.runs.get(single).state == "queued"
    assert "cuda:0 is held by run-0001 of workspace eins" in (two.runs.get(other).waiting_for or "")
    one.runs.stop(first)
    one.end(first)
    one.printed(third, "\n")
    two.runs.tick()
    assert two.runs.get(other).state == "queued"
    for run_id in (second, third):
        one.runs.stop(run_id)
        one.end(run_id)
    two.printed(other, "\n")
    alone.runs.tick()
    assert alone.runs.get(single).state == "queued"


def test_a_run_that_does_not_fit_beside_another_says_so(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(devices=lambda: TWO[:1], per_device=4)
    first = bench.start(WAITS, gpu_memory_min_gb=12)
    second = bench.start(WAITS, gpu_memory_min_gb=8)
    bench.runs.tick()
    waiting = bench.runs.get(second).waiting_for or ""
    assert f"cuda:0 is held by {first}, which leaves too little memory" in waiting
    assert bench.runs.get(second).freed_by == f"the end of {first}"


def test_devices_our_trainer_cannot_use_are_for_scripts() -> None:
    cards = [Card(0, trains=False)]
    assert need_of(RunRequest(kind="script", script="x.py"), cards).count == 1
    assert need_of(RunRequest(kind="recipe"), cards).count == 0
    with pytest.raises(Refused, match="cannot give 1 accelerator"):
        need_of(RunRequest(kind="recipe", gpu_count=1), cards)


def test_a_job_sees_its_devices_only() -> None:
    need = need_of(RunRequest(), TWO)
    assert environment(need, [TWO[1]])["CUDA_VISIBLE_DEVICES"] == "GPU-0000-1"
    amd = Card(1, "MI300X", backend="rocm")
    assert environment(need, [amd])["HIP_VISIBLE_DEVICES"] == "1"
    assert environment(need_of(RunRequest(gpu_count=0), TWO), [])["CUDA_VISIBLE_DEVICES"] == ""


WAITS = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'] or 'none', flush=True); time.sleep(600)"


def test_two_workspaces_share_two_cards(make_bench: Callable[..., Bench]) -> None:
    one, two = (make_bench(name, devices=lambda: TWO) for name in ("eins", "zwei"))
    first, second = one.start(WAITS), two.start(WAITS)
    third = two.start(WAITS)
    cpu = two.start(WAITS, prefer_resource="cpu")
    seen = []
    for bench, run_id in ((one, first), (two, second), (two, cpu)):
        bench.printed(run_id, "\n")
        seen.append(bench.text(run_id).strip())
    assert seen == ["GPU-0000-0", "GPU-0000-1", "none"]
    waiting = two.runs.get(third).waiting_for or ""
    assert "cuda:0 is held by run-0001 of workspace eins" in waiting and f"cuda:1 is held by {second}" in waiting
    assert durable.read_json(one.folder(first) / "run.json")["devices"] == [
        {"id": "cuda:0", "uuid": "GPU-0000-0", "index": 0}
    ]
    held = two.runs.holders([card.uuid for card in TWO])
    assert held == {"GPU-0000-0": f"{first} of workspace eins ({user_name()})", "GPU-0000-1": second}
    one.runs.stop(first)
    one.end(first)
    two.printed(third, "\n")
    assert two.text(third).strip() == "GPU-0000-0"
    assert two.runs.get(third).devices == ["cuda:0"]


def test_a_run_that_waits_for_two_cards_is_not_passed_by(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(devices=lambda: TWO)
    running = bench.start(WAITS)
    both = bench.start(WAITS, gpu_count=2)
    small = bench.start(WAITS)
    bench.runs.tick()
    assert [bench.runs.get(run_id).state for run_id in (both, small)] == ["queued", "queued"]
    assert "runs before it" in (bench.runs.get(small).waiting_for or "")
    bench.runs.stop(running)
    bench.end(running)
    bench.printed(both, "\n")
    assert bench.text(both).strip() == "GPU-0000-0,GPU-0000-1"
    assert bench.runs.get(small).state == "queued"


def test_a_run_that_waits_behind_another_keeps_the_rest_of_its_cards(make_bench: Callable[..., Bench]) -> None:
    """One waits for the large card, one behind it for both: a stream of runs on the small card must not starve it."""
    bench = make_bench(devices=lambda: MIXED)
    running = bench.start(WAITS, prefer_resource="h200")
    large = bench.start(WAITS, prefer_resource="h200")
    both = bench.start(WAITS, gpu_count=2)
    small = bench.start(WAITS, prefer_resource="4080")
    bench.runs.tick()
    assert [bench.runs.get(run_id).state for run_id in (large, both, small)] == ["queued"] * 3
    assert "the runs before it" in (bench.runs.get(small).waiting_for or "")
    for run_id in (running, large):
        bench.runs.stop(run_id)
        bench.end(run_id)
    bench.printed(both, "\n")
    assert bench.runs.get(small).state == "queued"


def test_a_run_that_waits_for_memory_is_not_passed_by(make_bench: Callable[..., Bench]) -> None:
    """The device's memory is used by our own run: whoever asked for more of it comes next all the same."""
    free = [16]

    def card() -> list[Card]:
        return [Card(0, memory_free_bytes=free[0] * GB)]

    bench = make_bench(devices=card)
    first = bench.start(WAITS)
    bench.printed(first, "\n")
    free[0] = 2
    large, small = bench.start(WAITS, gpu_memory_min_gb=10), bench.start(WAITS)
    bench.runs.tick()
    assert f"cuda:0 is held by {first}" in (bench.runs.get(large).waiting_for or "")
    assert "the runs before it" in (bench.runs.get(small).waiting_for or "")
    free[0] = 16
    bench.runs.stop(first)
    bench.end(first)
    bench.printed(large, "\n")
    assert bench.runs.get(small).state == "queued"


def test_max_concurrent_counts_everything(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(devices=lambda: TWO, max_concurrent=1)
    first, second = bench.start(WAITS), bench.start(WAITS)
    bench.runs.tick()
    assert bench.runs.get(second).waiting_for == (
        f"one of 1 active runs to end ({first}): runs.max_concurrent is 1; position 1 of 1 in the queue"
    )


def test_a_device_that_vanished_is_waited_for(make_bench: Callable[..., Bench]) -> None:
    there = list(TWO[:1])
    bench = make_bench(devices=lambda: list(there))
    running, waiting = bench.start(WAITS), bench.start(WAITS)
    there.clear()
    bench.runs.stop(running)
    bench.end(running)
    bench.until(lambda: "now there is no accelerator" in (bench.runs.get(waiting).waiting_for or ""))
    there.append(TWO[1])
    bench.printed(waiting, "GPU-0000-1")


# -- leases ------------------------------------------------------------------------------------------------------------


def test_lease_is_exclusive_and_told(tmp_path: Path) -> None:
    leases, others = Leases(tmp_path / "leases"), Leases(tmp_path / "leases")
    lease = leases.acquire("GPU-1/2", run="run-0001", workspace=Path("/here"))
    assert lease is not None
    assert others.acquire("GPU-1/2", run="run-0002", workspace=Path("/there")) is None
    holder = others.holders(["GPU-1/2", "GPU-9"])["GPU-1/2"]
    assert (holder.run, holder.workspace) == ("run-0001", "/here")
    assert others.acquire_some(["GPU-1/2", "GPU-3"], 2, run="run-0002", workspace=Path("/there")) is None
    assert set(others.holders()) == {"GPU-1_2"}  # nothing of the failed attempt is held
    lease.close()
    assert others.holders() == {}
    held = others.acquire_some(["GPU-1/2", "GPU-3"], 1, run="run-0002", workspace=Path("/there"))
    assert held is not None and [lease.resource for lease in held] == ["GPU-1/2"]
    release(held)


def test_folder_and_files_are_everybodys(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        lease = Leases(tmp_path / "leases").acquire("cpu-0", run="r", workspace=tmp_path)
    finally:
        os.umask(mask)
    assert lease is not None
    assert stat.S_IMODE((tmp_path / "leases").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "leases" / "cpu-0.lock").stat().st_mode) == 0o666
    lease.close()


def test_a_link_put_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    target = tmp_path / "victim"
    target.write_text("precious")
    (tmp_path / "leases" / "cpu-0.lock").symlink_to(target)
    with pytest.raises(Unavailable):
        Leases(tmp_path / "leases").acquire("cpu-0", run="r", workspace=tmp_path)
    assert target.read_text() == "precious"


def test_looking_never_takes_a_lease_away(tmp_path: Path) -> None:
    """Another process asks who holds what, all the time; every attempt on a free lease must succeed."""
    leases = Leases(tmp_path / "leases")
    code = (
        "import sys\nfrom pathlib import Path\nfrom training.runs.leases import Leases\n"
        "leases = Leases(Path(sys.argv[1]))\nprint('go', flush=True)\nwhile True: leases.holders()"
    )
    looker = subprocess.Popen([sys.executable, "-c", code, str(leases.folder)], stdout=subprocess.PIPE)
    try:
        assert looker.stdout and looker.stdout.readline() == b"go\n"
        for _ in range(300):
            lease = leases.acquire("cpu-0", run="r", workspace=tmp_path)
            assert lease is not None
            lease.close()
    finally:
        looker.kill()
        looker.wait()
        assert looker.stdout
        looker.stdout.close()
