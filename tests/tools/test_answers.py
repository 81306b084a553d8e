"""The answers of the tools over runs stay short, whatever a user's script wrote."""

from __future__ import annotations

from typing import Any

import pytest
from rag_support import eventually

from lab_mcp import compose
from tools import bounds
from tools.lab import Lab
from tools.tool import Caller
from training.runs.records import RunRequest

pytestmark = pytest.mark.anyio
TALKATIVE = """
import json, os
folder = os.environ["LAB_RUN_DIR"]
json.dump({"val_bpb": 1.25, "bad": float("nan"), "sample": "x" * 40_000}, open(f"{folder}/summary.json", "w"))
with open(f"{folder}/alerts.jsonl", "w") as file:
    for n in range(20):
        file.write(json.dumps({"text": f"alert {n} " + "y" * 900}) + "\\n")
for n in range(10):
    print("z" * 3_000)
raise RuntimeError("w" * 900)
"""


async def ask(lab: Lab, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await compose.all_tools().call(lab, tool, arguments, Caller("test"))
    assert bounds.size(answer) <= bounds.RESULT_CHARACTERS
    return answer


def is_over(lab: Lab, run: str) -> bool:
    lab.runs.tick()
    return lab.runs.get(run).ended


async def test_a_talkative_run(opened: Lab) -> None:
    (opened.workspace.root / "talk.py").write_text(TALKATIVE)
    started = await ask(opened, "start_training", script="talk.py", args=["--word", "v" * 5_000], prefer_resource="cpu")
    run = started["run_id"]
    eventually(lambda: is_over(opened, run), 60)  # a wait would be over at its first alert
    ended = await ask(opened, "wait_for_run", run_id=run, timeout_s=60)
    assert ended["ended"]
    assert ended["summary"]["val_bpb"] == 1.25
    assert f"whole in runs/{run}/summary.json" in ended["summary"]["sample"]
    assert ended["alerts"][-1]["text"].startswith("alert 19 ")
    detail = (await ask(opened, "list_runs", run_id=run))["detail"]
    assert detail["summary"]["val_bpb"] == 1.25
    assert f"whole in runs/{run}/run.json" in detail["command"][-1]


async def test_many_runs_are_paged_by_size(opened: Lab) -> None:
    (opened.workspace.root / "idle.py").write_text("")
    names = [f"{n} " + "n" * 70 for n in range(50)]
    for name in names:
        opened.runs.start(RunRequest(kind="script", script="idle.py", name=name, prefer_resource="cpu"))
    with opened.database.transaction() as tx:
        tx.execute("UPDATE runs SET state = 'failed', ended_at = created_at, reason = ?", ("r" * 900,))
    seen: list[str] = []
    page = await ask(opened, "list_runs", limit=50)
    while True:
        seen += [run["name"] for run in page["runs"]]
        if "more" not in page:
            break
        page = await ask(opened, "list_runs", limit=50, before=page["more"])
    assert seen == names[::-1]


async def test_the_settings_of_a_run_are_shown_whole(opened: Lab) -> None:
    started = await ask(opened, "start_training", overrides={"budget.kind": "steps", "budget.amount": 1})
    opened.runs.stop(started["run_id"])
    config = (await ask(opened, "list_runs", run_id=started["run_id"]))["detail"]["config"]
    assert "left_out" not in config
    assert config["budget"]["amount"] == 1
