"""What memory costs: searches as an assistant makes them, before and after an optimisation, the first one after a cold
start, and calls of the service while it indexes.

python benchmarks/memory.py [--write] [--bridge] [--searches] [--calls] [--folder DIR]

--write replaces the section in docs/benchmarks.md. --folder keeps the filled workspaces there for another time;
making them takes minutes.

Large indexes are made of the starter shelf: each added passage holds words of it and a vector near one of its vectors,
since embedding 50,000 passages takes a CPU a quarter of an hour. What is indexed while calls are timed is real text,
embedded as always.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import numpy as np
from conversation import Conversation, bridge_command, environment
from latency import percentile, summary
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from report import machine, write_section

from lab_mcp import initialise
from rag.client import Memory
from rag.documents import chunks, files
from rag.embedding import embedder as embedding
from rag.engine import SETTLE_AFTER_S, Engine
from rag.index.edge import CURRENT, OPTIMIZE_AT, EdgeStore
from rag.index.generation import ABOUT
from rag.index.store import Narrowing, Passage
from rag.query import check
from rag.scan import SHELF
from rag.search import AT_ONCE
from workspace import durable
from workspace.layout import Workspace
from workspace.settings import Settings

QUERIES = [
    "how many tokens for each parameter",
    "does a larger learning rate help small models",
    "seed noise and how many repetitions are needed",
    "optimizer state memory on several cards",
    "normalisation without the mean",
    "attention that avoids writing the score matrix",
    "rotary positions base",
    "squared relu against gated units",
    "keyword search against dense retrieval",
    "weight decay and the learning rate",
]
PEOPLE = (
    "Ada Bo Cy Dee Eli Fay Gus Hal Ivy Jo Kim Lev Mia Ned Oda Pam Quinn Rex Sue Tim Uma Vic Wes Xia Yan Zoe".split()
)
SEARCHES = 120
ROUNDS = 4  # of them through the bridge, by each client in turn: of a shared machine two seconds say little
COLD_STARTS = 5
IDLE_CALLS = 400
LONGEST_S = 900.0
SETTLED_S = SETTLE_AFTER_S + 3  # after its start memory has chosen how it embeds queries
NUMBERS = itertools.count()
CALLS_HEAD = "A call of the service, through the stdio bridge (asked: p99 under 50 ms, whatever memory does):"
READY, READY_FOR_CALLS = "ready", "ready-for-calls"  # files that say a kept workspace is complete
ABOUT_TO = OPTIMIZE_AT - 200  # passages; what is indexed for real crosses the threshold in the middle


def shelf_texts() -> list[str]:
    return [chunk.text for file in sorted(SHELF.glob("*.md")) for chunk in chunks.cut(files.read(file).blocks)]


def store_folder(workspace: Workspace) -> Path:
    current = durable.read_json(workspace.index_dir / CURRENT)
    return workspace.index_dir / current["folder"] / "store"


def prefill(workspace: Workspace, model: embedding.Embedder, count: int, first: int = 0, *, due: bool) -> None:
    """Add passages to the index of a workspace nobody has open; with `due`, the worker optimises them when it may."""
    texts = shelf_texts()
    centres = model.embed(texts)
    chance, numbers = random.Random(first), np.random.default_rng(first)
    folder = store_folder(workspace)
    about = durable.read_json(folder.parent / ABOUT)
    store = EdgeStore(folder, about["dimension"])
    for begin in range(first, first + count, 200):
        chosen = [chance.randrange(len(texts)) for _ in range(min(200, first + count - begin))]
        passages = []
        for n, which in enumerate(chosen, begin):
            words = texts[which].split()
            chance.shuffle(words)
            document, number = f"made-{n // 20}", n % 20
            passages.append(Passage(document, number, "note", f"Made {n // 20}", "made", "", " ".join(words), ""))
        near = centres[chosen] + 0.04 * numbers.standard_normal((len(chosen), centres.shape[1]))
        store.upsert(passages, (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32))
    store.flush()
    store.close()
    pointer = durable.read_json(folder / CURRENT)
    durable.write_json(folder / CURRENT, {**pointer, "points": 0 if due else 10**9})


def made(folder: Path, name: str) -> Workspace:
    """A workspace with the shelf indexed and nothing running."""
    workspace = Workspace(Path(initialise.init(folder / name).root))
    memory = Memory(workspace, Settings())
    memory.index(wait_s=120)
    memory.close()
    return workspace


def question(n: int) -> str:
    """No two alike, so that nothing is answered from what was asked before."""
    return f"{QUERIES[n % len(QUERIES)]}, {PEOPLE[n // len(QUERIES) % len(PEOPLE)]} asked {n}"


def time_searches(memory: Memory, count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        asked = question(next(NUMBERS))
        started = time.perf_counter()
        page = memory.search(asked)
        seconds.append(time.perf_counter() - started)
        assert page.hits
    return seconds


def shown(seconds: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(statistics.median(seconds) * 1000, 1),
        "p95_ms": round(percentile(seconds, 0.95) * 1000, 1),
        "max_ms": round(max(seconds) * 1000, 1),
    }


def measure_searches(folder: Path, model: embedding.Embedder) -> dict[str, dict[str, float]]:
    """Through `Memory` (embedding and worker included): before, during and after an optimisation at two sizes."""
    results: dict[str, dict[str, float]] = {}
    workspace = made(folder, "searches")
    have = 0
    for size in (10_000, 50_000):
        prefill(workspace, model, size - have, have, due=False)
        have = size
        memory = Memory(workspace, Settings())
        time_searches(memory, 10)
        time.sleep(SETTLED_S)
        results[f"{size:,} passages, before"] = shown(time_searches(memory, SEARCHES))
        memory.close()
        prefill(workspace, model, 20, have, due=True)
        have += 20
        memory = Memory(workspace, Settings())
        memory.add("note", f"note-{size}", "A note", "Anything written makes memory look whether it should optimise.")
        place = store_folder(workspace)
        before = durable.read_json(place / CURRENT)["shard"]
        seconds: list[float] = []
        started = time.monotonic()
        while durable.read_json(place / CURRENT)["shard"] == before:
            seconds += time_searches(memory, 5)
            assert time.monotonic() - started < LONGEST_S
        took = time.monotonic() - started
        results[f"{size:,} passages, while optimised ({took:.0f} s)"] = shown(seconds)
        time_searches(memory, 10)
        results[f"{size:,} passages, after"] = shown(time_searches(memory, SEARCHES))
        memory.close()
    return results


def optimised(folder: Path, model: embedding.Embedder) -> Workspace:
    """A workspace with 50,000 passages, optimised; the one `folder` holds from another time, if it does."""
    if (folder / READY).exists():
        return Workspace(folder / "bridge")
    workspace = made(folder, "bridge")
    prefill(workspace, model, 50_000, due=True)
    memory = Memory(workspace, Settings())
    memory.add("note", "note-1", "A note", "Anything written makes memory look whether it should optimise.")
    place = store_folder(workspace)
    before, deadline = durable.read_json(place / CURRENT)["shard"], time.monotonic() + LONGEST_S
    while durable.read_json(place / CURRENT)["shard"] == before:
        assert time.monotonic() < deadline
        time.sleep(1.0)
    memory.close()
    durable.write_text(folder / READY, "")
    return workspace


def nearly_due(kept: Path, folder: Path, model: embedding.Embedder) -> Workspace:
    """A workspace in `folder` whose index is soon to be optimised: a copy of the one `kept` holds, made if need be."""
    if not (kept / READY_FOR_CALLS).exists():
        prefill(made(kept, "nearly-due"), model, ABOUT_TO, due=True)
        durable.write_text(kept / READY_FOR_CALLS, "")
    shutil.copytree(kept / "nearly-due", folder / "calls")
    return Workspace(folder / "calls")


def search_through_bridge(workspace: Workspace, count: int) -> list[float]:
    """Seconds of each search of an assistant: stdio bridge, service, worker, and back."""
    with Conversation(workspace) as lab:
        seconds = []
        for n in range(count + 10):
            asked = question(next(NUMBERS))
            started = time.perf_counter()
            answer = lab.call("rag_search", query=asked)
            if n >= 10:
                seconds.append(time.perf_counter() - started)
            assert answer["hits"], answer
        return seconds


async def search_with_the_sdk(workspace: Workspace, count: int) -> list[float]:
    async with Client(stdio_client(bridge(workspace))) as client:
        seconds = []
        for n in range(count + 10):
            asked = {"query": question(next(NUMBERS))}
            started = time.perf_counter()
            answer = await client.call_tool("rag_search", asked)
            if n >= 10:
                seconds.append(time.perf_counter() - started)
            assert not answer.is_error and answer.structured_content["hits"], answer.content
        return seconds


def first_search(workspace: Workspace) -> float:
    """Seconds from starting the bridge, with no service running, to the answer of a search by meaning."""
    started = time.perf_counter()
    with Conversation(workspace) as lab:
        answer = lab.call("rag_search", query=question(next(NUMBERS)))
        elapsed = time.perf_counter() - started
    assert answer["hits"] and "partial" not in answer, answer
    return elapsed


def bridge(workspace: Workspace) -> StdioServerParameters:
    command = bridge_command()
    return StdioServerParameters(command=command[0], args=command[1:], env=environment(workspace))


def shut_down(workspace: Workspace) -> None:
    command = [sys.executable, "-P", "-m", "lab_mcp", "shutdown"]
    subprocess.run(command, env=environment(workspace), check=True, capture_output=True)


def measure_bridge(folder: Path, model: embedding.Embedder) -> dict[str, dict[str, float]]:
    """At 50,000 passages, optimised: warm searches, and the first one of a service that was not there."""
    workspace = optimised(folder, model)
    parts = measure_parts(workspace)
    try:
        asked = "(asked: p50 15, p95 40)"
        plain, with_the_sdk = [], []
        search_through_bridge(workspace, 1)
        time.sleep(SETTLED_S)
        for _ in range(ROUNDS):
            plain += search_through_bridge(workspace, SEARCHES)
            with_the_sdk += anyio.run(search_with_the_sdk, workspace, SEARCHES)
        results = {f"warm search, 50,000 passages {asked}": shown(plain)}
        results["the same, with the work of the Python SDK's client"] = shown(with_the_sdk)
        cold = []
        for _ in range(COLD_STARTS):
            shut_down(workspace)
            cold.append(first_search(workspace))
        results["first search, service and worker not running before (asked: 2,000)"] = shown(cold)
    finally:
        shut_down(workspace)
    return results | parts


def measure_parts(workspace: Workspace) -> dict[str, dict[str, float]]:
    """Where the time of a warm search goes: the same questions answered in this process, and their parts alone."""
    settings = Settings()
    engine = Engine(workspace, settings.rag.model, settings.rag.floor, shelf=False)
    try:
        store, model = engine.generations.building.store, engine._wait_for_embedder()
        time.sleep(SETTLED_S)
        seconds: dict[str, list[float]] = {}

        @contextlib.contextmanager
        def timed(name: str) -> Iterator[None]:
            started = time.perf_counter()
            yield
            seconds.setdefault(name, []).append(time.perf_counter() - started)

        for n in range(SEARCHES + 10):
            if n == 10:
                seconds.clear()
            asked = check(question(next(NUMBERS)), limit=6)
            with timed("a warm search inside memory's process, all of it"):
                engine.search(asked)
            text = question(next(NUMBERS))
            with timed("the query's vector"):
                vector = model.embed_query(text).tolist()
            with timed("passages by meaning, twice"):
                for _ in range(2):
                    store.dense(vector, 100, Narrowing())
            with timed("passages by words"):
                names = store.words(text, 100, Narrowing())
            with timed("the content of eleven"):
                store.passages([name for name, _ in names[: 6 + 1 + AT_ONCE]])
        return {name: shown(each) for name, each in seconds.items()}
    finally:
        assert engine.close(10)


def write_papers(workspace: Workspace) -> None:
    """Some 1,000 passages of real sentences in 40 files."""
    sentences = [sentence.strip() for text in shelf_texts() for sentence in text.split(". ") if len(sentence) > 20]
    chance = random.Random(7)
    for n in range(40):
        chosen = [f"{chance.choice(sentences)} ({n}.{m})." for m in range(170)]
        (workspace.papers_dir / f"study-{n:02d}.txt").write_text(f"Study {n}\n\n" + " ".join(chosen))


def measure_calls(workspace: Workspace) -> dict[str, dict[str, float]]:
    """`gpu_status` through the bridge: idle, while real text is indexed, and while the index is optimised as well."""
    results: dict[str, dict[str, float]] = {}
    with Conversation(workspace) as lab:

        def call() -> float:
            started = time.perf_counter()
            lab.call("gpu_status")
            return time.perf_counter() - started

        lab.call("rag_index", wait_s=60)
        time.sleep(SETTLED_S)
        results["gpu_status, memory idle"] = summary([call() for _ in range(IDLE_CALLS)])
        write_papers(workspace)
        begun = time.monotonic()
        report = lab.call("rag_index", wait_s=0)
        assert report["state"] == "indexing", report
        place = store_folder(workspace)
        first = durable.read_json(place / CURRENT)["shard"]
        indexing, optimizing = [], []
        waiting = report["waiting"]
        for n in _until(begun + LONGEST_S):
            beside = len(list(place.glob("shard-*"))) > 1
            (optimizing if beside else indexing).append(call())
            if n % 200 == 199:
                report = lab.call("rag_index", wait_s=0)
                waiting = report["waiting"]
                if not waiting and durable.read_json(place / CURRENT)["shard"] != first:
                    break
        else:
            raise SystemExit(f"indexing took longer than {LONGEST_S:.0f} s; {waiting} documents wait")
        passages = report["passages"] - ABOUT_TO
        results[f"gpu_status, while {passages:,} passages are indexed beside {ABOUT_TO:,}"] = summary(indexing)
        results["gpu_status, while the index is optimised as well"] = summary(optimizing)
    return results


def _until(deadline: float) -> Iterator[int]:
    n = 0
    while time.monotonic() < deadline:
        yield n
        n += 1


def table(results: dict[str, dict[str, float]], last: str) -> str:
    lines = [f"| what | p50 ms | {last[:3]} ms | slowest ms |", "|---|---:|---:|---:|"]
    return "\n".join(lines + [f"| {name} | {r['p50_ms']} | {r[last]} | {r['max_ms']} |" for name, r in results.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("write", "bridge", "searches", "calls"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    everything = not (options.bridge or options.searches or options.calls)
    parts, results = [f"Measured {machine()}."], {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = embedding.load(embedding.PACKAGED_MODEL, folder)
        if options.bridge or everything:
            searched = measure_bridge(options.folder or folder, model)
            head = "A search as an assistant makes it, through the stdio bridge, its embedding included:"
            parts.append(f"{head}\n\n{table(searched, 'p95_ms')}")
            results |= searched
        if options.calls or everything:
            workspace = nearly_due(options.folder or folder, folder, model)
            try:
                calls = measure_calls(workspace)
            finally:
                shut_down(workspace)
            parts.append(f"{CALLS_HEAD}\n\n{table(calls, 'p99_ms')}")
            results |= calls
        if options.searches or everything:
            searches = measure_searches(folder, model)
            parts.append("A search through the worker, its embedding included:\n\n" + table(searches, "p95_ms"))
            results |= searches
    text = "\n\n".join(parts)
    print(text)
    print(json.dumps(results))
    if options.write:
        write_section("Memory", "python benchmarks/memory.py", text)


if __name__ == "__main__":
    main()
