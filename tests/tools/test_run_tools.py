"""list_runs, wait_for_run, tail_log and gpu_status as the assistant uses them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import anyio
import jsonschema
import pytest

from lab_mcp import compose
from tools.lab import Lab
from tools.tool import Caller
from training.runs.alerts.alert import Alert, write_once
from training.runs.alerts.watch import Watch
from workspace import clock, durable
from workspace.errors import LabError, Refused
from workspace.layout import Workspace
from workspace.settings import Settings

pytestmark = pytest.mark.anyio
WAITING = "import time\nprint('ERROR: disk is slow')\nprint('step 1')\ntime.sleep(600)\n"


@pytest.fixture
def opened(lab: Workspace) -> Iterator[Lab]:
    parts = compose.build_lab(lab, {"pid": 0, "url": "", "started_at": "", "version": "0"})
    yield parts
    for run in parts.runs.list(limit=50):
        parts.runs.stop(run.id)
    compose.stop(parts)


async def ask(lab: Lab, tool: str, conversation: str = "test", **arguments: Any) -> dict[str, Any]:
    """The answer; it is what the tool's published schema promises, because clients check that."""
    tools = compose.all_tools()
    answer = await tools.call(lab, tool, arguments, Caller(conversation))
    jsonschema.validate(answer, tools[tool].output_schema())
    return answer


async def start(lab: Lab, text: str) -> str:
    (lab.workspace.root / "job.py").write_text(text)
    run = (await ask(lab, "start_training", script="job.py", prefer_resource="cpu"))["run_id"]
    assert isinstance(run, str)
    return run


async def test_waiting_ends_early_for_an_alert_and_once_for_each_conversation(opened: Lab) -> None:
    run = await start(opened, WAITING)
    folder = opened.workspace.run_dir(run)
    began = time.monotonic()
    async with anyio.create_task_group() as group:

        async def raise_later() -> None:
            await anyio.sleep(0.5)
            write_once(folder, Alert("thermal", "hot", device="cuda:0"), "note")  # no reason to come back
            await anyio.sleep(0.5)
            write_once(folder, Alert("loss_flat", "the loss does not fall"), "warn")

        group.start_soon(raise_later)
        answer = await ask(opened, "wait_for_run", run_id=run, timeout_s=300)
    assert time.monotonic() - began < 200
    assert not answer["ended"] and answer["new_alerts"] == 2
    assert [alert["class"] for alert in answer["alerts"]] == ["thermal", "loss_flat"]
    assert "tell the user" in answer["next"]

    again = await ask(opened, "wait_for_run", run_id=run, timeout_s=0.5)
    assert again["new_alerts"] == 0 and len(again["alerts"]) == 2
    elsewhere = await ask(opened, "wait_for_run", "another", run_id=run, timeout_s=300)
    assert elsewhere["new_alerts"] == 2 and not elsewhere["ended"]
    (listed,) = (await ask(opened, "list_runs", state="live"))["runs"]
    assert listed["alert_classes"] == ["thermal", "loss_flat"] and listed["disk_bytes"] > 0


async def test_a_run_that_fails_brings_its_alert_with_its_end(opened: Lab) -> None:
    run = await start(opened, "import there_is_no_such_module\n")
    answer = await ask(opened, "wait_for_run", run_id=run, timeout_s=60)
    assert answer["ended"] and answer["failure_class"] == "import"
    (alert,) = answer["alerts"]
    assert alert["class"] == "import_error" and "there_is_no_such_module" in alert["text"] and alert["suggestion"]
    lines = (await ask(opened, "tail_log", run_id=run, level="error"))["lines"]
    assert lines[0].startswith("Traceback") and lines[-1].startswith("ModuleNotFoundError")


async def test_a_run_that_could_go_on_says_how(opened: Lab) -> None:
    run = await start(opened, "")
    await ask(opened, "wait_for_run", run_id=run, timeout_s=60)
    folder = opened.workspace.run_dir(run)
    with opened.runs.database.transaction() as tx:  # as if it had been the lab's trainer, interrupted
        tx.execute("UPDATE runs SET kind = 'recipe', state = 'preempted' WHERE id = ?", (run,))
    answer = await ask(opened, "wait_for_run", run_id=run)
    assert "tail_log" in answer["next"], "without a checkpoint it can only be started anew"
    (folder / "checkpoints" / "step-00000007").mkdir(parents=True)
    answer = await ask(opened, "wait_for_run", run_id=run)
    assert f"start_training(resume={run!r})" in answer["next"]
    with pytest.raises(LabError, match="is not a run of the built-in trainer"):
        await ask(opened, "start_training", resume=run)
    with pytest.raises(Refused, match="resume belongs to the built-in trainer"):
        await ask(opened, "start_training", resume=run, script="job.py")


async def test_two_runs_are_compared_and_a_curve_is_a_table(opened: Lab) -> None:
    first = await start(opened, "")
    second = await start(opened, "")
    for run, rate, score in ((first, 0.02, 1.31), (second, 0.04, 1.28)):
        folder = opened.workspace.run_dir(run)
        durable.write_json(folder / "config.json", {"optimizer": {"lr": rate, "betas": [0.9, 0.95]}, "seed": 1})
        durable.write_json(folder / "summary.json", {"val_bpb": score, "steps": 10, "sample": run})
        for step in range(40):
            line = {"step": step, "loss": 3.0 - step / 100, "time": "x"}
            durable.append_jsonl(folder / "metrics.jsonl", line | ({"val_bpb": 1.5} if step == 20 else {}))
    detail = (await ask(opened, "list_runs", run_id=second, compare_to=first))["detail"]
    differing = detail["differences"]
    assert differing["config.optimizer.lr"] == [0.04, 0.02] and differing["result.val_bpb"] == [1.28, 1.31]
    assert not {"config.seed", "config.optimizer.betas", "result.steps"} & differing.keys()
    assert detail["curve"]["columns"] == ["step", "loss", "val_bpb"]
    assert detail["curve"]["rows"][-1] == [39, 2.61, None], "what was not measured at a step is null"
    assert len(detail["curve"]["rows"]) == 20
    with pytest.raises(Refused, match="compare_to needs run_id"):
        await ask(opened, "list_runs", compare_to=first)
    with pytest.raises(LabError, match="run-0099"):
        await ask(opened, "list_runs", run_id=first, compare_to="run-0099")


async def test_what_the_machine_did_last_night(opened: Lab) -> None:
    run = await start(opened, "")
    await ask(opened, "wait_for_run", run_id=run, timeout_s=60)
    for _ in range(3):
        opened.hardware.sample()
        await anyio.sleep(0.05)
    answer = await ask(opened, "gpu_status", since="2h")
    (cpu,) = [device for device in answer["history"]["devices"] if device["device"] == "cpu"]
    assert "busy" in cpu["summary"] and cpu["rows"] and len(cpu["rows"][0]) == len(answer["history"]["columns"])
    assert [line.split()[0] for line in answer["history"]["runs"]] == [run]
    earlier = clock.from_epoch(time.time() - 7200)
    night = (await ask(opened, "gpu_status", since="1d", until=earlier))["history"]
    assert night["runs"] == [] and "nothing was recorded" in json.dumps(night["devices"])
    for wrong in ({"since": "last night"}, {"until": "2h"}, {"since": "1h", "until": "2h"}):
        with pytest.raises(Refused):
            await ask(opened, "gpu_status", **wrong)


async def test_a_rule_set_to_stop_ends_a_real_run_with_its_reason(opened: Lab) -> None:
    run = await start(
        opened,
        "import json, os, time\n"
        "for step in range(5):\n"
        "    with open(os.environ['LAB_RUN_DIR'] + '/metrics.jsonl', 'a') as file:\n"
        "        file.write(json.dumps({'step': step, 'loss': float('nan') if step == 4 else 2.0}) + '\\n')\n"
        "time.sleep(600)\n",
    )
    settings = Settings.model_validate({"alerts": {"nan": "stop"}})
    watch = Watch(opened.workspace, settings, opened.runs, opened.hardware)
    with anyio.fail_after(60):
        while not opened.runs.alerts(run):
            await anyio.to_thread.run_sync(opened.runs.tick)
            await anyio.to_thread.run_sync(watch.round)
            await anyio.sleep(0.05)
    first = await ask(opened, "wait_for_run", run_id=run, timeout_s=60)  # tells of the alert
    answer = first if first["ended"] else await ask(opened, "wait_for_run", run_id=run, timeout_s=60)
    assert (answer["state"], answer["failure_class"]) == ("failed", "nan")
    assert answer["reason"].startswith("nan: loss is nan at step 4") and "alerts.nan in lab.toml" in answer["reason"]
    assert answer["alert_classes"] == ["nan"], "its end raises no further one"
    assert [alert["class"] for alert in answer["alerts"]] == ["nan"]
