"""The memory worker: `python -m rag.worker ROOT`, a child of the service. It alone opens the index.

Talks on stdin and stdout (see `rag.protocol`) and ends by itself when stdin ends, that is, when the service is gone.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from rag import protocol
from rag.engine import Engine
from rag.index.catalogue import Entry
from rag.index.place import place_for
from rag.query import Query
from workspace.layout import Workspace

THREADS = 8  # calls answered at once
END_S = 5.0  # time for the batch in hand when the service is gone

log = logging.getLogger("rag.worker")


class Worker:
    """Reads calls and answers them from a pool of threads."""

    def __init__(self, engine: Engine, output: IO[bytes]) -> None:
        self.engine = engine
        self._output = output
        self._writing = threading.Lock()
        self._calls: dict[str, Callable[[dict[str, Any]], Any]] = {
            "search": lambda given: engine.search(Query.from_json(given)).as_json(),
            "add": lambda given: engine.add(Entry(**{**given, "hash": "", "tags": tuple(given["tags"])})),
            "remove": lambda given: engine.remove(given["id"]),
            "index": lambda given: engine.index(given["paths"], given["wait_s"]).as_json(),
            "status": lambda given: engine.status().as_json(),
            "documents": lambda given: engine.documents(**given).as_json(),
            "opening": lambda given: engine.opening(**given).as_json(),
            "reindex": lambda given: engine.reindex(given["ids"]),
            "rankings": lambda given: engine.rankings(given["texts"]).as_json(),
        }

    def serve(self, source: IO[bytes]) -> None:
        """Answer until the stream ends. Waiting for an indexing must not keep searches waiting: own threads for it."""
        with ThreadPoolExecutor(THREADS) as quick, ThreadPoolExecutor(THREADS) as slow:
            while (message := protocol.read(source)) is not None:
                pool = slow if message["call"] in ("index", "rankings") else quick
                pool.submit(self._answer, message)
            finish(self.engine)

    def _answer(self, message: dict[str, Any]) -> None:
        try:
            answer = {"id": message["id"], "answer": self._calls[message["call"]](message["with"])}
        except Exception as error:  # every call gets an answer
            log.exception("%s failed", message["call"])
            answer = {"id": message["id"], "error": protocol.pack_error(error)}
        try:
            with self._writing:
                protocol.write(self._output, answer)
        except OSError:
            log.info("the service is gone; an answer was dropped")


def finish(engine: Engine) -> None:
    """Close the index and end the process, whatever threads still run; a kill here would lose nothing either."""
    closed = engine.close(END_S)
    log.info("ended%s", "" if closed else " in the middle of a batch; it is repeated at the next start")
    logging.shutdown()
    os._exit(0)


def main() -> None:
    source, output = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the protocol
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    hello = protocol.read(source)
    if hello is None:
        return
    given = hello["with"]
    try:
        workspace = Workspace(Path(sys.argv[1]))
        place = place_for(given["qdrant_url"], workspace.root.name)
        engine = Engine(workspace, given["model"], given["floor"], place=place, reranker=given["reranker"])
    except Exception as error:  # the service is told, in words
        log.exception("the index cannot be opened")
        protocol.write(output, {"id": hello["id"], "error": protocol.pack_error(error)})
        logging.shutdown()
        os._exit(1)  # a half-loaded embedder must not keep the process
    protocol.write(output, {"id": hello["id"], "answer": {"pid": os.getpid()}})
    log.info("started (pid %d)", os.getpid())
    Worker(engine, output).serve(source)


if __name__ == "__main__":
    main()
