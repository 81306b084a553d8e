"""kill -9 at any moment: no note that was answered is lost, none is doubled, pages and index follow the journal."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROUNDS = 20
CHILD = """
import sys, threading
from pathlib import Path
from sessions.notebook import Notebook
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import Outbox

root, start = Path(sys.argv[1]), int(sys.argv[2])
workspace = Workspace(root)
database = Database(workspace.database_file)
notebook = Notebook(workspace, database, Outbox(database))
notebook.recover()
guard = threading.Lock()

def work(worker):
    for n in range(start, start + 100_000):
        key = f"{worker}.{n}"
        notebook.write(conversation=f"talk-{worker % 2}", section="Results", text=f"note {key}.", key=key)
        notebook.journal(f"talk-{worker % 2}", "stop_run", {"n": n}, "ok", key=f"call {key}")
        with guard:
            print(key, flush=True)

for worker in range(3):
    threading.Thread(target=work, args=(worker,)).start()
"""


@pytest.mark.slow
def test_twenty_kills_while_three_threads_write(lab: Any) -> None:
    chance, answered, by_hand = random.Random(11), list[str](), list[str]()
    code = Path(__file__).resolve().parents[2]
    for round_ in range(ROUNDS):
        start = max((int(key.split(".")[1]) for key in answered), default=2) - 2  # the last few are sent again
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(lab.root), str(start)],
            stdout=subprocess.PIPE,
            cwd=code,
            env={**os.environ, "PYTHONPATH": str(code)},
        )
        assert child.stdout is not None
        answered.append(child.stdout.readline().decode().strip())  # it writes: from here on any moment will do
        time.sleep(chance.random() * 0.4)
        child.send_signal(signal.SIGKILL)
        answered += child.stdout.read().decode().split()
        child.wait()
        child.stdout.close()
        if round_ % 3 == 0:  # a person edits the page the killed process left behind
            page = next(iter(sorted(lab.workspace.sessions_dir.glob("*.md"))))
            lines = page.read_text(encoding="utf-8").split("\n")
            by_hand.append(f"mine {round_}")
            lines.insert(chance.randrange(len(lines)), by_hand[-1])
            page.write_text("\n".join(lines), encoding="utf-8")

        notebook = lab.again()
        notebook.recover()
        assert notebook.verify() == []
        notebook.absorb_edits()
        sessions = notebook.list(limit=100)
        assert len(sessions) <= 2
        pages = "\n".join(notebook.read(session.id) for session in sessions)
        entries = [entry for session in sessions for entry in notebook.entries(session.id)]
        keys = Counter(entry.key for entry in entries if entry.key)
        assert [key for key in set(answered) if keys[key] != 1 or keys[f"call {key}"] != 1] == []
        assert max(keys.values()) == 1
        shown = Counter(pages.split("\n"))
        assert [e.text for e in entries if e.kind == "note" and shown[e.text] != 1] == []
        assert [line for line in by_hand if line not in pages] == []
        assert "removed by hand" not in pages
        told = Counter(message["entry"] for message in lab.told())
        assert max(told.values(), default=1) == 1
        lab.seen = getattr(lab, "seen", Counter()) + told
        lab.database.close()
    assert len(set(answered)) < len(answered)
    assert set(lab.seen) == {e.id for e in entries if e.kind == "amendment" or (e.kind == "note" and e.text)}
    assert max(lab.seen.values()) == 1
    assert not list(lab.workspace.sessions_dir.glob(".*.tmp"))
