"""The real Claude Code and what surrounds the tools: prompts, the plugin, questions to the user, tasks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_model import Call, Result, ScriptedModel, call

import lab_mcp
from workspace.layout import Workspace

pytestmark = pytest.mark.slow
PLUGIN = Path(lab_mcp.__file__).parent / "plugin"
MARKETPLACE = PLUGIN.parents[1]
PATIENT_JOB = "import os, time\nwhile not os.path.exists({go!r}):\n    time.sleep(0.1)\nprint('the answer is 42')\n"
SLOW_JOB = "import time\nprint('begun', flush=True)\ntime.sleep(4)\nprint('the answer is 42')\n"


def said_to(model: ScriptedModel) -> str:
    """Everything the user's side has told the model, as one text."""
    return json.dumps(model.requests[-1]["messages"], ensure_ascii=False) if model.requests else ""


def wait_until(true: Callable[[], object], shown: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"it never happened; last was {shown()}"
        time.sleep(0.1)


def once_connected(first: Call) -> Callable[[list[Result]], Call | str]:
    """A script that begins with `first`. At a terminal a server is not waited for: until then there is no such tool."""

    def play(results: list[Result]) -> Call | str:
        if results and not (results[-1].is_error and "No such tool" in results[-1].text):
            return "done"
        if results:
            time.sleep(0.5)
        return first

    return play


def test_the_plugin_and_its_marketplace_are_valid(claude) -> None:
    for place in (PLUGIN, MARKETPLACE):
        done = claude.command("plugin", "validate", "--strict", str(place))
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_plugin_brings_server_and_skills(lab: Workspace, claude) -> None:
    command = json.loads((lab.root / ".mcp.json").read_text())["mcpServers"]["lab"]["command"]
    (lab.root / ".mcp.json").unlink()
    status = Call("mcp__plugin_lab_lab__gpu_status", {})

    def play(results: list[Result]) -> Call | str:
        return once_connected(status)(results[1:]) if results else Call("Skill", {"skill": "lab:running-an-experiment"})

    options = ["--plugin-dir", str(PLUGIN)]
    model = claude.converse(play, *options, allowed="mcp__plugin_lab_lab,Skill", LAB_MCP_COMMAND=command)
    assert not model.results[0].is_error
    assert "A difference between two runs is not a result" in said_to(model)
    assert "cpu" in model.results[-1].content


def test_a_prompt_is_a_slash_command(lab: Workspace, claude) -> None:
    (lab.root / "job.py").write_text("raise ValueError('no such optimizer')\n")
    claude.converse([call("start_training", script="job.py"), call("wait_for_run", run_id="run-0001", timeout_s=30)])
    model = claude.converse(["I see."], said="/mcp__lab__post_mortem run-0001")
    told = said_to(model)
    assert "Write the post-mortem of run-0001" in told
    assert "ValueError: no such optimizer" in told, "the end of the log is in it"


def test_a_tool_that_is_not_loaded_is_found_by_its_hint(claude) -> None:
    asked = {"run_campaign": "hyperparameter sweep", "rag_index": "index PDFs", "stop_run": "kill job"}
    model = claude.converse([[Call("ToolSearch", {"query": words}) for words in asked.values()]], allowed="ToolSearch")
    shown = said_to(model)
    for tool in asked:
        assert f'"tool_name": "mcp__lab__{tool}"' in shown, shown[-3000:]


def ask_above(lab: Workspace, hours: float) -> None:
    lab.settings_file.write_text(f"[runs]\nask_above_hours = {hours}\n")


def test_nobody_there_to_ask_means_no(lab: Workspace, claude) -> None:
    ask_above(lab, 0.5)
    (lab.root / "job.py").write_text("print(1)\n")
    model = claude.converse(
        [
            call("start_training", script="job.py"),
            call("start_training", script="job.py", time_limit_hours=0.1),
            call("list_runs"),
        ]
    )
    refused, allowed, listed = model.results
    assert refused.is_error and "ask_above_hours" in refused.text and "time_limit_hours" in refused.text
    assert allowed.content["run_id"] == "run-0001", "the error said what would be allowed"
    assert listed.content["total"] == 1


def test_a_hook_may_answer_for_the_user(lab: Workspace, claude, tmp_path: Path) -> None:
    ask_above(lab, 0.5)
    (lab.root / "job.py").write_text("print(1)\n")
    answer = {"hookEventName": "Elicitation", "action": "accept", "content": {"go_ahead": True}}
    file = tmp_path / "answer.json"
    file.write_text(json.dumps({"hookSpecificOutput": answer}))
    claude.settings(hooks={"Elicitation": [{"hooks": [{"type": "command", "command": f"cat '{file}'"}]}]})
    model = claude.converse([call("start_training", script="job.py")])
    assert model.results[0].content["run_id"] == "run-0001"


def test_at_a_terminal_a_run_is_a_task_and_its_end_comes_by_itself(lab: Workspace, claude) -> None:
    go = lab.root / "go"
    (lab.root / "job.py").write_text(PATIENT_JOB.format(go=str(go)))
    claude.converse([call("gpu_status")])  # the lab is up
    for number in range(1, 6):
        go.unlink(missing_ok=True)
        run_id = f"run-{number:04d}"
        with (
            ScriptedModel(once_connected(call("start_training", script="job.py"))) as model,
            claude.at_a_terminal(model) as user,
        ):
            wait_until(lambda: any(run_id in result.text for result in model.results), lambda: user.shown[-3000:])  # noqa: B023
            begun = model.results[-1]
            go.touch()  # a task that ends at once is told in the answer instead
            if begun.text.startswith("{"):
                continue  # the machine was too busy for the three seconds it waits for the newer protocol: no tasks
            wait_until(lambda: "task-notification" in said_to(model), lambda: said_to(model)[-3000:])
        break
    assert model.failure is None
    assert not begun.is_error and not begun.text.startswith("{"), "it took tasks at least once"
    told = said_to(model)
    assert "succeeded" in told and "StartTrainingResult" not in told


def test_leaving_the_terminal_does_not_stop_the_run(lab: Workspace, claude, command) -> None:
    (lab.root / "job.py").write_text(SLOW_JOB.replace("sleep(4)", "sleep(8)"))
    with (
        ScriptedModel(once_connected(call("start_training", script="job.py"))) as model,
        claude.at_a_terminal(model) as user,
    ):
        wait_until(lambda: any(not result.is_error for result in model.results), lambda: user.shown[-3000:])
    wait_until(lambda: "succeeded" in command("runs").stdout, lambda: command("runs").stdout)


def test_the_form_at_the_terminal_starts_the_run(lab: Workspace, claude) -> None:
    ask_above(lab, 0.5)
    (lab.root / "job.py").write_text("print(1)\n")
    with (
        ScriptedModel(once_connected(call("start_training", script="job.py"))) as model,
        claude.at_a_terminal(model) as user,
    ):
        wait_until(lambda: "Go ahead?" in user.shown.replace("\x1b[1C", " "), lambda: user.shown[-3000:])
        for key in (" ", "\x1b[B", "\r"):  # ticks the box, goes down to the button, presses it
            user.settle()
            user.type(key)
        wait_until(lambda: any("run-0001" in result.text for result in model.results), lambda: user.shown[-3000:])
    assert not model.results[-1].is_error
