"""Cleaning removes what is old and of no more use, says so first, and never what is still needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from training.runs import retention
from training.runs.retention import REMOVING, Retention, Rules, size_of
from training.runs.store import Store
from workspace import clock, durable
from workspace.database import Database
from workspace.errors import NotFound, Refused
from workspace.ids import Ids
from workspace.layout import Workspace

OLD = Rules(keep_latest=0)


class House:
    """A workspace with ended runs as they lie there."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root)
        self.workspace.create_folders()
        self.database = Database(self.workspace.database_file)
        self.store = Store(self.database)
        self.ids = Ids(self.database, "run", self.workspace.runs_dir)
        self.retention = Retention(self.workspace, self.database)

    def run(self, days: float = 100, *, live: bool = False, val_bpb: float | None = None, **run: Any) -> str:
        """A run of 3 MB that ended `days` ago."""
        at = clock.from_epoch(clock.parse(clock.now()).timestamp() - days * 86400)
        with self.database.transaction() as tx:
            run_id = self.ids.allocate(tx)
            about = {"id": run_id, "kind": "recipe", "name": f"name of {run_id}", "purpose": "run", "created_at": at}
            self.store.insert(tx, about, {})
            if live:
                tx.execute("UPDATE runs SET state = 'running' WHERE id = ?", (run_id,))
            else:
                summary = None if val_bpb is None else {"val_bpb": val_bpb}
                self.store.end(tx, run_id, {"state": "succeeded", "ended_at": at}, summary)
        folder = self.workspace.run_dir(run_id)
        (folder / "checkpoints" / "step-00000010").mkdir(parents=True)
        (folder / "checkpoints" / "step-00000010" / "model.safetensors").write_bytes(os.urandom(2_000_000))
        (folder / "train.log").write_bytes(b"Step 1 | Loss: 2.0\n" * 50_000)
        durable.write_json(folder / "run.json", about | run)
        return run_id

    def clean(self, rules: Rules = OLD, needed: dict[str, str] | None = None, *, act: bool = True) -> dict[str, Any]:
        return self.retention.clean(rules, needed or {}, act=act).as_json()

    def has_checkpoints(self, run_id: str) -> bool:
        return (self.workspace.run_dir(run_id) / "checkpoints").exists()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def removed(plan: dict[str, Any]) -> list[str]:
    return [removal["run"] for removal in plan["removals"]]


def test_a_dry_run_changes_nothing_and_tells_what_would_go(house: House) -> None:
    old, young = house.run(), house.run(days=1)
    plan = house.clean(act=False)
    assert removed(plan) == [old] and plan["freed_bytes"] >= 2_000_000 and not plan["done"]
    assert plan["held_bytes"] >= 2 * plan["freed_bytes"]
    assert house.has_checkpoints(old) and house.has_checkpoints(young)
    assert house.retention.cleaned(old) == []


def test_what_goes_is_gone_and_noted_and_what_stays_is_whole(house: House) -> None:
    old = house.run()
    before = house.retention.usage(old)
    plan = house.clean()
    assert removed(plan) == [old] and plan["done"]
    after = house.retention.usage(old)
    assert after["checkpoints"] == 0 and after["logs"] == before["logs"]
    assert (house.workspace.run_dir(old) / "run.json").exists()
    assert house.retention.cleaned(old)[0].startswith("checkpoints (0.00 GB) removed 20")
    assert removed(house.clean()) == []  # nothing is left to remove
    assert removed(house.clean(Rules("logs", keep_latest=0))) == [old]
    assert not (house.workspace.run_dir(old) / "train.log").exists()


def test_a_whole_folder_goes_but_its_id_never_comes_back(house: House) -> None:
    only = house.run()
    house.clean(Rules("folders", keep_latest=0))
    assert not house.workspace.run_dir(only).exists()
    assert house.store.row(only) is not None
    assert house.run() != only


def test_what_is_of_use_stays_and_the_plan_says_why(house: House) -> None:
    pinned, promoted, best = house.run(), house.run(), house.run(val_bpb=1.1)
    ordinary, worse = house.run(), house.run(val_bpb=1.2)
    needed, resumed = house.run(), house.run()
    live = house.run(live=True, resume_from=str(house.workspace.run_dir(resumed) / "checkpoints"))
    latest = house.run()
    house.retention.pin(pinned, "test")
    (house.workspace.models_dir / "good").mkdir()
    durable.write_json(house.workspace.models_dir / "good" / "origin.json", {"run": promoted})
    plan = house.clean(Rules(keep_latest=1), {needed: "exp-0001 is open"})
    assert removed(plan) == [ordinary, worse]
    assert plan["kept"] == {
        pinned: "pinned",
        promoted: "promoted as good",
        best: "the best val_bpb of all runs",
        needed: "exp-0001 is open",
        resumed: f"{live} goes on from it",
        live: "running",
        latest: "one of the latest 1",
    }
    assert all(house.has_checkpoints(run_id) for run_id in plan["kept"])
    house.retention.unpin(pinned)
    assert removed(house.clean(Rules(keep_latest=1), {needed: ""})) == [pinned]


def test_down_to_a_size_takes_the_oldest_first_and_no_more_than_needed(house: House) -> None:
    runs = [house.run(days=10 - n) for n in range(6)]
    held = sum(size_of(house.workspace.run_dir(run_id)) for run_id in runs)
    wanted = (held - 3_500_000) / 1e9  # two checkpoints less
    plan = house.clean(Rules(keep_latest=1, down_to_gb=wanted))
    assert removed(plan) == runs[:2]


def test_a_kill_in_the_middle_of_a_removal_is_made_good(house: House) -> None:
    run_id = house.run()
    left = house.workspace.runs_dir / f"{REMOVING}{run_id}-checkpoints"
    (house.workspace.run_dir(run_id) / "checkpoints").rename(left)
    house.clean()
    assert not left.exists()


def test_space_is_measured_anew_only_when_something_changed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """list_runs asks for every run it shows; a folder may hold a million files."""
    run_id = house.run()
    walks: list[Path] = []

    def count(path: Path) -> int:
        walks.append(path)
        return size_of(path)

    monkeypatch.setattr(retention, "size_of", count)
    first = house.retention.usage(run_id)
    assert first["checkpoints"] >= 2_000_000 and first["total"] >= first["checkpoints"] + first["logs"]
    seen = len(walks)
    monkeypatch.setattr(retention, "USAGE_S", 0.0)
    assert house.retention.usage(run_id) == first and len(walks) == seen
    (house.workspace.run_dir(run_id) / "more.bin").write_bytes(b"x" * 1_000_000)
    assert house.retention.usage(run_id)["total"] >= first["total"] + 1_000_000
    monkeypatch.setattr(retention, "USAGE_S", 600.0)
    house.run()
    house.clean(Rules(keep_latest=1))
    assert house.retention.usage(run_id)["checkpoints"] == 0, "what was cleaned is known at once"


def test_links_are_not_followed(house: House, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x" * 100_000)
    linked_inside, linked = house.run(), house.run()
    (house.workspace.run_dir(linked_inside) / "checkpoints" / "link").symlink_to(elsewhere)
    folder = house.workspace.run_dir(linked)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    plan = house.clean(Rules("folders", keep_latest=0))
    assert removed(plan) == [linked_inside]
    assert (elsewhere / "precious").exists() and (tmp_path / "moved" / "train.log").exists()


def test_nonsense_is_refused(house: House) -> None:
    with pytest.raises(NotFound, match="run-0001"):
        house.retention.pin("run-0009", "test") if house.run() else None
    with pytest.raises(Refused):
        house.clean(Rules(older_than_days=-1))
    with pytest.raises(Refused, match="checkpoints, logs, folders"):
        house.clean(Rules("everything"))  # type: ignore[arg-type]
    gone = house.run()
    house.clean(Rules("folders", keep_latest=0))
    with pytest.raises(Refused, match="gone"):
        house.retention.pin(gone, "test")
