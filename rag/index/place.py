"""Where passages are kept: a Qdrant server when one is named, else Qdrant's engine here, else qdrant-client alone."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rag.index.store import Store
from rag.index.words import words
from workspace.errors import Unavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """`name` is recorded with an index; another name means another index."""

    name: str
    open: Callable[[Path, int, Callable[[], None]], Store]  # folder, dimension, what to call when it was made anew


def place_for(url: str, label: str) -> Place:
    """The place a workspace named `label` has its passages; `url` is empty or that of a server."""
    if url:
        from rag.index import server

        name = server.shown(url)
        at_server = functools.partial(server.QdrantStore, connect=server.connector(url), name=name, label=label)
        return Place(f"server {name}, {words().name} words", at_server)
    if find_spec("qdrant_edge") is not None:
        from rag.index.edge import EdgeStore

        return Place("edge", EdgeStore)
    log.warning("no qdrant-edge wheel here: the index is kept by qdrant-client's local mode, all of it in memory")
    return Place(f"client, {words().name} words", _local_store)


def _local_store(folder: Path, dimension: int, made: Callable[[], None]) -> Store:
    from rag.index import server

    connect = server.local_connector(folder / "qdrant")
    return server.QdrantStore(folder, dimension, made, connect=connect, name="in this process", local=True)


def forget(folder: Path) -> bool:
    """Remove a server's collection that a store folder names; False when the server cannot be asked now."""
    from workspace import durable

    about = durable.read_json(folder / "collection.json")
    if about is None or "://" not in about["server"]:
        return True
    from rag.index import server

    try:
        server.QdrantStore(folder, 1, connect=server.connector(about["server"]), name=about["server"]).drop()
    except Unavailable as error:
        log.warning("an old collection stays where it is for now: %s", error.problem)
        return False
    return True
