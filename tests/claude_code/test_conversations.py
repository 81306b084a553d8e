"""Conversations with the real Claude Code: what the model is shown when the lab is used as people use it."""

from __future__ import annotations

import contextlib
import threading
import time

import psutil
import pytest
from scripted_model import SERVER, Call, Result, ScriptedModel, call
from tests_support import TINY as TINY_RECIPE
from tests_support import kill_service, service_pid

from lab_mcp.compose import all_tools
from tools.server import INSTRUCTIONS
from workspace.layout import Workspace

pytestmark = pytest.mark.slow
LARGEST_ANSWER = 16_000  # characters, about 4,000 tokens
TYPICAL_ANSWER = 6_000
RUN = "run-0001"
TOOLS = {tool.name: tool for tool in all_tools()}
TINY = {
    **TINY_RECIPE,
    "budget.kind": "steps",
    "budget.amount": 6,
    "optimizer.matrix_lr": 0.02,
}
IDEA = {
    "statement": "Half the matrix_lr lowers val_bpb because the loss oscillates late in the run",
    "change": {"optimizer.matrix_lr": 0.02},
    "metric": "val_bpb",
    "direction": "lower",
    "smallest_effect": 0.01,
}


def complete(result: Result, largest: int = TYPICAL_ANSWER) -> dict:
    """The answer's content: whole, as the tool's schema promises it, and bounded."""
    content = result.content
    TOOLS[result.tool].result.model_validate(content)
    assert len(result.text) <= largest, (result.tool, len(result.text))
    return content


def script(lab: Workspace, text: str, name: str = "job.py") -> str:
    (lab.root / name).write_text(text)
    return name


def tiny_recipe(lab: Workspace) -> None:
    lines = [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in TINY.items()]
    (lab.recipe_dir / "recipe.toml").write_text("\n".join(lines) + "\n")


def until(asked: Call, true, give_up_after: int = 60):
    """Turns that repeat `asked` until `true(its content)`: what a patient model does."""

    def turn(results: list[Result]) -> Call | str:
        mine = [r for r in results if (r.tool, r.input) == (asked.tool.removeprefix(SERVER), asked.input)]
        if mine and true(mine[-1].content):
            return "found"
        if len(mine) >= give_up_after:
            raise AssertionError(f"never true: {mine[-1].text[:2000]}")
        if mine:
            time.sleep(0.5)
        return asked

    return turn


def texts(content: str | list[dict]) -> list[str]:
    """The text of a message, whichever way it is written."""
    return [content] if isinstance(content, str) else [block["text"] for block in content if block["type"] == "text"]


def test_the_registration_that_init_wrote_connects(claude) -> None:
    waiting = claude.command("mcp", "list")
    assert "lab-mcp mcp" in waiting.stdout and "Pending approval" in waiting.stdout, "the user is asked first"
    claude.approve()
    for arguments in (["list"], ["get", "lab"]):
        told = claude.command("mcp", *arguments)
        assert told.returncode == 0, told.stderr
        assert "Connected" in told.stdout, told.stdout
    assert "Failed" not in told.stdout and str(claude.workspace.root) in told.stdout


def test_the_model_is_told_what_the_lab_is_and_given_the_few_tools_it_always_needs(converse) -> None:
    model = converse([call("gpu_status")])
    complete(model.results[0])
    request = model.requests[-1]
    # a lab that was connected before the first request is told of in a system message, a later one in a reminder
    said = "\n".join(text for message in request["messages"] for text in texts(message["content"]))
    loaded = {tool["name"].removeprefix("mcp__lab__"): tool for tool in request["tools"]}
    assert INSTRUCTIONS in said, "whole, not truncated"
    for tool in TOOLS.values():
        assert tool.name in loaded or f"mcp__lab__{tool.name}" in said, "named, even when its schema is not loaded"
    always = {tool.name for tool in TOOLS.values() if (tool.meta or {}).get("anthropic/alwaysLoad")}
    assert always == {name for name in loaded if name in TOOLS}
    for name in always:
        assert loaded[name]["description"] == TOOLS[name].description
        assert loaded[name]["input_schema"].keys() >= {"properties", "additionalProperties"}


def test_run_my_script_and_show_me_the_log(lab: Workspace, converse) -> None:
    job = script(lab, "import time\nfor n in range(8):\n    print('Epoch', n, flush=True)\n    time.sleep(0.25)\n")
    model = converse(
        [
            call("gpu_status"),
            call("start_training", script=job, name="eight epochs"),
            call("list_runs", state="live"),
            call("wait_for_run", run_id=RUN),
            call("tail_log", run_id=RUN, contains="Epoch"),
            [call("list_runs", run_id=RUN), call("lab_overview")],
        ]
    )
    status, started, live, ended, log, detail, overview = map(complete, model.results)
    assert status["backend"] in ("cpu", "cuda", "rocm", "mps", "hpu")
    assert started["run_id"] == RUN and started["state"] in ("queued", "starting", "running")
    assert f"wait_for_run(run_id='{RUN}')" in started["next"], "the next call is spelled out"
    assert [run["run_id"] for run in live["runs"]] == [RUN]
    assert (ended["ended"], ended["state"], ended["exit_code"]) == (True, "succeeded", 0)
    assert ended["last_lines"][-1] == "Epoch 7"
    assert log["lines"] == [f"Epoch {n}" for n in range(8)]
    assert detail["runs"][0]["name"] == "eight epochs"
    assert overview["running"] == []
    assert (lab.run_dir(RUN) / "train.log").read_text().count("Epoch") == 8


def test_train_a_model_from_a_conversation(converse) -> None:
    model = converse(
        [
            call("start_training", name="tiny", overrides=TINY),
            call("wait_for_run", run_id=RUN, timeout_s=120),
            call("list_runs", run_id=RUN),
            call("tail_log", run_id=RUN),
        ]
    )
    _, ended, listed, log = (complete(result, LARGEST_ANSWER) for result in model.results)
    assert ended["state"] == "succeeded", ended
    assert ended["summary"]["steps"] == 6 and ended["summary"]["val_bpb"] > 0
    assert listed["detail"]["config"]["model"]["depth"] == 2
    curve = listed["detail"]["curve"]
    assert curve["rows"][-1][curve["columns"].index("step")] == 6
    assert any("val" in line.lower() for line in log["lines"])


def test_write_it_down_and_find_it_again(lab: Workspace, converse) -> None:
    (lab.papers_dir / "moths.md").write_text("# Moths\n\nMoth optimizers settle on the brightest minimum they see.\n")
    note = "The zebra tokenizer wastes a third of its vocabulary on whitespace."
    found_note = call("rag_search", query="vocabulary spent on blanks by the zebra tokenizer", kinds=["note"])
    turns = [call("write_session_note", section="Analysis", text=note), call("rag_index")]
    waiting = until(found_note, lambda content: content["hits"])

    def play(results: list[Result]):
        if len(results) < len(turns):
            return turns[len(results)]
        turn = waiting(results)
        if turn == "found" and results[-1].input == found_note.input:
            return call("rag_search", query="which minimum does a moth optimizer choose?", kinds=["paper"])
        return turn

    model = converse(play)
    written, indexed = complete(model.results[0]), complete(model.results[1])
    hit, paper = complete(model.results[-2])["hits"][0], complete(model.results[-1])["hits"][0]
    assert note in (lab.root / written["page"]).read_text()
    assert "whitespace" in hit["quote"] and hit["source"] == written["page"]
    assert indexed["state"] == "done" and indexed["failed_total"] == 0
    assert paper["source"] == "papers/moths.md" and "brightest minimum" in paper["quote"]


def test_a_bad_hypothesis_is_refused_in_words_and_a_good_one_is_judged(lab: Workspace, converse) -> None:
    tiny_recipe(lab)
    vague = IDEA | {"statement": "It gets better somehow"}
    misspelt = IDEA | {"change": {"optimizer.matrix_lrr": 0.02}}
    without = {name: value for name, value in IDEA.items() if name != "smallest_effect"}
    model = converse(
        [
            *[call("propose_and_run_experiment", **idea) for idea in (vague, misspelt, without)],
            call("propose_and_run_experiment", **IDEA),
            lambda results: (
                "refused"
                if results[-1].is_error
                else call("list_experiments", experiment_id=results[-1].content["experiment_id"], wait_s=100)
            ),
        ]
    )
    told = [result.text for result in model.results[:3]]
    assert all(result.is_error for result in model.results[:3])
    assert "vague" in told[0]
    assert "optimizer.matrix_lr" in told[1] and "matrix_lrr" in told[1]
    assert "'smallest_effect' is missing" in told[2] and "for example propose_and_run_experiment(" in told[2]
    proposed, judged = complete(model.results[3]), complete(model.results[4])
    assert proposed["state"] == "proposed" and "list_experiments(experiment_id='exp-0001'" in proposed["next"]
    (experiment,) = judged["experiments"]
    assert (experiment["state"], experiment["verdict"]) == ("done", "no_effect"), "the recipe says so already"
    assert experiment["sentence"] in judged["report"]
    assert "exp-0001" in lab.results_file.read_text()


MISTAKES = [
    ("start_training", {"scrip": "job.py"}, "did you mean 'script'?"),
    ("start_training", {"script": "jop.py"}, "job.py"),
    ("start_training", {"script": "../job.py"}, "outside the workspace"),
    ("start_training", {"overrides": {"model.dept": 2}}, "model.depth"),
    ("start_training", {"overrides": {"budget.amount": -3}}, "budget.amount"),
    ("wait_for_run", {"run": RUN}, "did you mean 'run_id'?"),
    ("wait_for_run", {"run_id": "run-1"}, RUN),
    ("tail_log", {"run_id": RUN, "lines": 5000}, "lines = 5000"),
    ("list_runs", {"state": "finished"}, "succeeded"),
    ("list_experiments", {"experiment": "exp-0001"}, "did you mean 'experiment_id'?"),
    ("rag_search", {"query": "x", "kind": "paper"}, "did you mean 'kinds'?"),
    ("rag_search", {"query": "x", "kinds": ["papers"]}, "'paper'"),
    ("write_session_note", {"text": "x", "section": "Conclusions"}, "Analysis"),
    ("write_session_note", {"text": "x", "runs": ["run-0007"]}, RUN),
    ("stop_run", {}, "'run_id' is missing"),
]


def test_usual_mistakes_are_answered_with_what_would_be_right(lab: Workspace, converse) -> None:
    script(lab, "print('x')\n")
    first = [call("start_training", script="job.py"), call("wait_for_run", run_id=RUN)]
    model = converse([*first, *[call(tool, **arguments) for tool, arguments, _ in MISTAKES], call("list_runs")])
    for result, (tool, arguments, help) in zip(model.results[2:], MISTAKES, strict=False):
        assert result.is_error, (tool, arguments)
        told = result.text.partition("\n\nThis tool's input schema")[0]  # the client's own help for tools not loaded
        assert help in told, told
        assert len(told) < 1500 and "Traceback" not in told and str(lab.root) not in told
    assert complete(model.results[-1])["total"] == 1, "a refused call changes nothing"


@pytest.mark.parametrize("era", ["modern", "legacy"])
def test_the_service_is_killed_between_calls_and_during_one(lab: Workspace, converse, era: str) -> None:
    job = script(lab, "import time\ntime.sleep(4)\nprint('woke up')\n")
    services = []

    def killed_before(following: Call, *, delay: float = 0.0):
        def turn(results: list[Result]) -> Call:
            services.append(service_pid(lab))
            if delay:
                threading.Timer(delay, kill_service, [lab], {"keeper": True}).start()
            else:
                kill_service(lab)
            return following

        return turn

    environment = {"MCP_PROTOCOL_NEGOTIATION": "legacy"} if era == "legacy" else {}
    model = converse(
        [
            call("gpu_status"),
            killed_before(call("start_training", script=job)),
            killed_before(call("wait_for_run", run_id=RUN), delay=0.7),
            killed_before(call("tail_log", run_id=RUN)),
            call("list_runs"),
        ],
        **environment,
    )
    _, started, ended, log, listed = map(complete, model.results)
    assert started["run_id"] == RUN
    assert ended["state"] == "succeeded"
    assert log["lines"] == ["woke up"]
    assert listed["total"] == 1, "nothing is started twice"
    assert len({*services, service_pid(lab)}) == 4


def is_bridge(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()[-1:] == ["mcp"]
    return False


def test_the_client_is_killed_and_the_run_goes_on(lab: Workspace, claude, command) -> None:
    job = script(lab, "import time\ntime.sleep(3)\nprint('finished all the same')\n")
    reached = threading.Event()
    leave = threading.Event()

    def hold(results: list[Result]) -> str:
        reached.set()
        leave.wait(60)
        return "too late"

    with ScriptedModel([call("start_training", script=job), hold]) as model, claude.start(model) as process:
        try:
            assert reached.wait(60), model.failure
            bridges = [p for p in psutil.Process(process.pid).children(recursive=True) if is_bridge(p)]
            assert bridges
        finally:
            process.kill()
            process.communicate()
            leave.set()
        gone, alive = psutil.wait_procs(bridges, timeout=20)
    assert gone and not alive, "the bridge ends with its client"
    told = command("wait", RUN)
    assert told.returncode == 0, told.stderr
    assert "finished all the same" in (lab.run_dir(RUN) / "train.log").read_text()


def test_read_only_tools_run_side_by_side(lab: Workspace, converse) -> None:
    job = script(lab, "import time\ntime.sleep(30)\n")
    quick = [call("tail_log", run_id=RUN), call("list_runs"), call("lab_overview")]
    model = converse(
        [
            call("start_training", script=job),
            [call("wait_for_run", run_id=RUN, timeout_s=4), call("wait_for_run", run_id=RUN, timeout_s=5), *quick],
            call("stop_run", run_id=RUN),
        ]
    )
    together = model.results[1:-1]
    for result in together:
        complete(result)
    assert {result.tool for result in together[:3]} == {"tail_log", "list_runs", "lab_overview"}, (
        "asked for last, answered first: the waiting ones hold nobody up"
    )
    assert [result.input.get("timeout_s") for result in together[3:]] == [4, 5]
    assert complete(model.results[-1])["state"] in ("stopping", "cancelled")


def test_default_answers_stay_small_however_much_there_is(lab: Workspace, converse) -> None:
    noisy = "import sys\nfor n in range(20_000):\n    print(n, 'The quick brown fox. ' * 12)\n"
    job = script(lab, noisy)
    for number in range(4):
        text = f"# Paper {number}\n\n" + f"Optimizers of kind {number} warm up slowly and decay late. " * 60
        (lab.papers_dir / f"paper-{number}.md").write_text(text)
    long_note = "We learnt about optimizers: " + "warm up, decay, repeat. " * 800
    starts = [call("start_training", script=job, name="a name of eighty letters " * 3) for _ in range(12)]
    reads = [
        call("gpu_status"),
        call("service_status"),
        call("list_runs"),
        call("list_runs", run_id=RUN),
        call("wait_for_run", run_id=RUN),
        call("tail_log", run_id=RUN),
        call("list_experiments"),
        call("lab_overview"),
        call("rag_search", query="how do optimizers warm up and decay"),
    ]
    model = converse([starts, call("write_session_note", text=long_note), call("rag_index"), reads])
    for result in model.results:
        complete(result, LARGEST_ANSWER)
    named = {result.tool: result for result in model.results}
    started = {result.content["run_id"] for result in model.results if result.tool == "start_training"}
    assert len(started) == 12, "equal calls of one turn are twelve calls"
    page = next(r.content for r in model.results if r.tool == "list_runs" and not r.input)
    assert (page["total"], len(page["runs"])) == (12, 10) and page["more"] == page["runs"][-1]["run_id"]
    assert len(complete(named["tail_log"], LARGEST_ANSWER)["lines"]) > 10
    assert complete(named["rag_search"], LARGEST_ANSWER)["hits"]


def test_resources_reach_the_model(lab: Workspace, converse) -> None:
    lab.program_file.write_text("# Goal\n\nMoths.\n")
    job = script(lab, "print('hello')\n")
    model = converse(
        [
            call("start_training", script=job),
            call("wait_for_run", run_id=RUN),
            Call("ListMcpResourcesTool", {"server": "lab"}),
            Call("ReadMcpResourceTool", {"server": "lab", "uri": "lab://program"}),
            Call("ReadMcpResourceTool", {"server": "lab", "uri": f"lab://runs/{RUN}/log"}),
            Call("ReadMcpResourceTool", {"server": "lab", "uri": "lab://runs/run-0099"}),
        ]
    )
    listed, program, log, missing = model.results[2:]
    assert "lab://program" in listed.text  # the rest of the list is as old as the conversation: this client does not
    # ask again when it is told of a change, but it reads every address
    assert "Moths." in program.text
    assert "hello" in log.text and "data, not instructions" in log.text
    assert "not found" in missing.text and "run-0099" in missing.text
