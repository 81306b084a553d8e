"""Generations: a catalogue and a store made with one model, one schema and in one place, in a folder of their own.

`current.json` names the one that answers. When one of the three changes, a new one is built beside it and swapped in
when it is complete; until then the old one answers by its words.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.index.catalogue import Catalogue
from rag.index.place import Place, forget
from rag.index.store import SCHEMA, Store
from workspace import durable, process
from workspace.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CURRENT = "current.json"
ABOUT = "generation.json"
TAKEN_OVER = "taken-over"  # a file that is there when the generation before has handed its documents over
LOCK_WAIT_S = 20.0  # a worker whose service was killed needs a moment to notice and let go
LOCK_WAIT_ALIVE_S = 1.0  # one whose service lives will not let go
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    folder: Path
    model: str
    schema: int
    catalogue: Catalogue
    store: Store

    def close(self) -> None:
        self.store.close()
        self.catalogue.close()


class Generations:
    """The generations of one index folder. `building` takes what is new; `serving` is another one or None."""

    def __init__(self, folder: Path, model: str, dimension: int, place: Place, schema: int = SCHEMA) -> None:
        self.folder = folder
        self._place = place
        self.fresh = False  # nothing was here
        self.wake: Callable[[], None] = lambda: None  # a store that was lost is made anew: all of it waits
        self.serving: Generation | None = None
        about = {"model": model, "schema": schema, "dimension": dimension, "place": place.name}
        current = durable.read_json(folder / CURRENT)
        if current is not None and current["about"] == about:
            self.building = self._open(folder / current["folder"])
            self._sweep(keep=[self.building.folder])
            return
        target = self._unfinished(about)
        new = target is None
        if target is None:
            target = folder / f"generation-{self._last_number() + 1:04d}"
            target.mkdir()
            durable.write_json(target / ABOUT, about)
        self.building = self._open(target)
        if current is None:
            self.fresh = new
            self._point(self.building)
            return
        self.serving = self._open_old(folder / current["folder"])
        if self.serving is None or self.serving.schema != schema:
            self.swap()
        else:
            self._sweep(keep=[target, folder / current["folder"]])

    def _open(self, folder: Path) -> Generation:
        about = durable.read_json(folder / ABOUT)
        if about is None:
            raise Unavailable("the index is damaged", fix="remove the folder .lab/index; it is built again")
        catalogue = Catalogue(folder / "catalogue.db")
        try:
            return self._with_store(folder, about, catalogue)
        except BaseException:
            catalogue.close()
            raise

    def _with_store(self, folder: Path, about: dict[str, Any], catalogue: Catalogue) -> Generation:
        def made() -> None:
            catalogue.store_is_empty()
            self.wake()

        store = self._place.open(folder / "store", int(about["dimension"]), made)
        return Generation(folder, about["model"], int(about["schema"]), catalogue, store)

    def _open_old(self, folder: Path) -> Generation | None:
        """The generation made before, after `building` took its documents over; None when it cannot answer."""
        about = durable.read_json(folder / ABOUT)
        if about is None:
            log.warning("the index made before is damaged; it is built again from the files")
            return None
        catalogue = Catalogue(folder / "catalogue.db")
        done = self.building.folder / TAKEN_OVER
        if not done.exists():  # once only: what was changed or removed since must stay so
            self.building.catalogue.take_over(catalogue)
            durable.write_text(done, "")
        if about.get("place") == self._place.name:
            try:
                return self._with_store(folder, about, catalogue)
            except Unavailable as error:
                log.warning("the index made before cannot be used while the new one is built: %s", error)
        catalogue.close()
        return None

    def swap(self) -> None:
        """`building` is complete: it alone answers from now on."""
        self._point(self.building)
        self._stop_serving_old()
        self._sweep(keep=[self.building.folder])

    def _stop_serving_old(self) -> None:
        if self.serving is not None:
            old, self.serving = self.serving, None
            old.close()

    def _point(self, generation: Generation) -> None:
        about = durable.read_json(generation.folder / ABOUT)
        durable.write_json(self.folder / CURRENT, {"folder": generation.folder.name, "about": about})

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("generation-*") if path.is_dir())

    def _last_number(self) -> int:
        numbers = [int(m.group(1)) for path in self._folders() if (m := re.search(r"-(\d+)$", path.name))]
        return max(numbers, default=0)

    def _unfinished(self, about: dict[str, object]) -> Path | None:
        return next((path for path in self._folders() if durable.read_json(path / ABOUT) == about), None)

    def _sweep(self, keep: list[Path]) -> None:
        for path in self._folders():
            if path not in keep and forget(path / "store"):
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        self._stop_serving_old()
        self.building.close()


@contextlib.contextmanager
def owner(folder: Path) -> Iterator[None]:
    """Own the index folder in this process; waits for a dying owner. Raises `Unavailable` when another keeps it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor)
        parent = process.identify(os.getppid())
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(parent.as_json() if parent else None).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    started = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            patience = LOCK_WAIT_ALIVE_S if _has_living_parent(descriptor) else LOCK_WAIT_S
        if time.monotonic() - started > patience:
            raise Unavailable(
                "the memory of this workspace is in use by another process",
                fix="use the service that has it, or end it with `lab-mcp shutdown`",
            )
        time.sleep(0.05)


def _has_living_parent(descriptor: int) -> bool:
    """Whether the process that started the lock's owner (as a rule a service) still runs."""
    try:
        parent = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # the owner is writing it this moment
        return False
    return parent is not None and process.is_alive(process.ProcessIdentity.from_json(parent))
