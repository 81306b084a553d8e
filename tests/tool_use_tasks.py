"""Thirty things people ask a lab for, each with an end state to be checked, and a script that slips on the way.

A slip is a call as assistants really get it wrong. Its refusal alone must hold what the next call needs: the mended
call is computed from the words of the error and from nothing else. `benchmarks/tool_use.py` plays the same tasks with a
real model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests_support import TINY

from tools.lab import Lab

Arguments = dict[str, Any]
Call = tuple[str, Arguments]
TINY_RUN = {**TINY, "budget.kind": "steps", "budget.amount": 4}
HYPOTHESIS = {
    "statement": "Half the matrix_lr lowers val_bpb because the loss oscillates late in the run",
    "change": {"optimizer.matrix_lr": 0.02},
    "metric": "val_bpb",
    "direction": "lower",
    "smallest_effect": 0.01,
}
CAMPAIGN = {"action": "start", "goal": "lower val_bpb", "smallest_effect": 0.01, "proposer": "assistant"}
PAPER = "# Meerkats\n\nA meerkat stands guard at dawn while the others forage for beetles in the sand.\n"


@dataclass(frozen=True)
class Do:
    """A call that is answered."""

    tool: str
    arguments: Arguments


@dataclass(frozen=True)
class Slip:
    """A call that is refused, and what an attentive reader makes of the refusal."""

    tool: str
    arguments: Arguments
    mend: Callable[[str], Call]


@dataclass(frozen=True)
class Task:
    name: str
    request: str  # in the user's words
    script: Sequence[Do | Slip]
    done: Callable[[Lab], bool]  # looks at ledger, notebook, index
    files: dict[str, str] | None = None  # what lies in the workspace before
    before: Sequence[Do] = ()  # what has happened before


def find(pattern: str, text: str) -> str:
    """The first group of `pattern` in an error's words."""
    found = re.search(pattern, text)
    assert found, f"nothing like {pattern!r} in: {text}"
    return found.group(1)


def number(pattern: str, text: str) -> float:
    return float(find(pattern, text).replace(",", ""))


def ran(name: str) -> Callable[[Lab], bool]:
    return lambda lab: [run.name for run in lab.runs.list()] == [name]


def proposed(lab: Lab) -> bool:
    return len(lab.experiments.list()) == 1


def noted(words: str, section: str | None = None) -> Callable[[Lab], bool]:
    def check(lab: Lab) -> bool:
        return any(
            words in entry.text and section in (None, entry.section)
            for session in lab.notebook.list()
            for entry in lab.notebook.entries(session.id)
        )

    return check


def start(**more: Any) -> Do:
    return Do("start_training", {"script": "job.py", "name": "job", **more})


def slip_in(tool: str, right: Arguments, wrong: Arguments, mend: Callable[[str], Arguments]) -> Slip:
    """`wrong` instead of some of the right arguments; `mend` reads the replacement out of the error."""
    kept = {name: value for name, value in right.items() if name not in wrong}
    return Slip(tool, {**right, **wrong}, lambda text: (tool, {**kept, **mend(text)}))


JOB = {"job.py": "print('hello from the job')\n"}
SLEEPER = {"job.py": "import time\nprint('up', flush=True)\ntime.sleep(600)\n"}
TALKER = {"job.py": "for n in range(3000):\n    print('line', n)\n"}

TASKS = [
    Task(
        "run a script whose name is misspelt",
        "Run the script trian.py (or so) and name the run 'job'.",
        [
            slip_in(
                "start_training",
                {"name": "job"},
                {"script": "jop.py"},
                lambda t: {"script": find(r"(job\.py)", t)},
            )
        ],
        ran("job"),
        JOB,
    ),
    Task(
        "arguments of a script in one string",
        "Run job.py with --epochs 1 and name the run 'job'.",
        [
            slip_in(
                "start_training",
                {"script": "job.py", "name": "job"},
                {"args": "--epochs 1"},
                lambda t: {"args": ["--epochs", "1"] if "list" in t else []},
            )
        ],
        lambda lab: ran("job")(lab) and lab.runs.detail("run-0001", points=0)["command"][-2:] == ["--epochs", "1"],
        JOB,
    ),
    Task(
        "overrides for a script",
        "Run job.py for one epoch (it takes --epochs), as run 'job'.",
        [
            slip_in(
                "start_training",
                {"script": "job.py", "name": "job"},
                {"overrides": {"epochs": 1}},
                lambda t: {find(r"give (\w+) instead", t): ["--epochs", "1"]},
            )
        ],
        ran("job"),
        JOB,
    ),
    Task(
        "arguments without a script",
        "Train the recipe with depth 2, as run 'tiny'.",
        [
            Slip(
                "start_training",
                {"name": "tiny", "args": ["--depth", "2"]},
                lambda t: ("start_training", {"name": "tiny", find(r"(overrides)", t): TINY_RUN}),
            )
        ],
        ran("tiny"),
    ),
    Task(
        "a setting that is misspelt",
        "Train the recipe with model.depth 1 and a tiny budget, as run 'tiny'.",
        [
            slip_in(
                "start_training",
                {"name": "tiny"},
                {"overrides": {**TINY_RUN, "model.dept": 1}},
                lambda t: {"overrides": {**TINY_RUN, find(r"(model\.depth)", t): 1}},
            )
        ],
        lambda lab: ran("tiny")(lab) and lab.runs.detail("run-0001", points=0)["config"]["model"]["depth"] == 1,
    ),
    Task(
        "a setting outside its range",
        "Train the recipe tiny, with the smallest budget there is, as run 'tiny'.",
        [
            slip_in(
                "start_training",
                {"name": "tiny"},
                {"overrides": {**TINY_RUN, "budget.amount": -1}},
                lambda t: {"overrides": {**TINY_RUN, "budget.amount": number(r"above (\d+)", t) + 4}},
            )
        ],
        ran("tiny"),
    ),
    Task(
        "a budget of a kind there is not",
        "Train the recipe for four iterations, as run 'tiny'.",
        [
            slip_in(
                "start_training",
                {"name": "tiny"},
                {"overrides": {**TINY_RUN, "budget.kind": "iterations"}},
                lambda t: {"overrides": {**TINY_RUN, "budget.kind": find(r"(steps)", t)}},
            )
        ],
        ran("tiny"),
    ),
    Task(
        "a time limit beyond what is allowed",
        "Run job.py as 'job' with a limit of two months.",
        [
            slip_in(
                "start_training",
                {"script": "job.py", "name": "job"},
                {"time_limit_hours": 1460},
                lambda t: {"time_limit_hours": number(r"less than or equal to (\d+)", t)},
            )
        ],
        ran("job"),
        JOB,
    ),
    Task(
        "a script outside the workspace",
        "Run ../job.py as 'job'; there is a copy in the workspace.",
        [
            slip_in(
                "start_training",
                {"name": "job"},
                {"script": "../job.py"},
                lambda t: {"script": "job.py" if "workspace" in t else ""},
            )
        ],
        ran("job"),
        JOB,
    ),
    Task(
        "the same key for another call",
        "Start job.py twice, as two runs.",
        [
            start(idempotency_key="first"),
            slip_in(
                "start_training",
                {"script": "job.py", "name": "again"},
                {"idempotency_key": "first"},
                lambda t: {"idempotency_key": "second" if "new key" in t else "first"},
            ),
        ],
        lambda lab: sorted(run.name for run in lab.runs.list()) == ["again", "job"],
        JOB,
    ),
    Task(
        "the same call again because it seemed slow",
        "Start job.py once, whatever happens.",
        [start(idempotency_key="only"), start(idempotency_key="only")],
        ran("job"),
        JOB,
    ),
    Task(
        "a run id from memory, to wait for",
        "Wait for the run and note under Results how it ended.",
        [
            slip_in(
                "wait_for_run", {"timeout_s": 30}, {"run_id": "run-1"}, lambda t: {"run_id": find(r"(run-\d{4})", t)}
            ),
            Do("write_session_note", {"text": "run-0001 succeeded.", "runs": ["run-0001"]}),
        ],
        noted("run-0001 succeeded", "Results"),
        JOB,
        [start()],
    ),
    Task(
        "a run id from memory, to stop",
        "Stop the run.",
        [
            slip_in(
                "stop_run",
                {"reason": "not needed any more"},
                {"run_id": "run-0011"},
                lambda t: {"run_id": find(r"(run-0001)", t)},
            ),
            Do("wait_for_run", {"run_id": "run-0001", "timeout_s": 40}),
        ],
        lambda lab: lab.runs.get("run-0001").state == "cancelled",
        SLEEPER,
        [start()],
    ),
    Task(
        "a name instead of an id",
        "Stop the run called 'job'.",
        [
            slip_in("stop_run", {}, {"run_id": "job"}, lambda t: {"run_id": find(r"(run-\d{4})", t)}),
            Do("wait_for_run", {"run_id": "run-0001", "timeout_s": 40}),
        ],
        lambda lab: lab.runs.get("run-0001").state == "cancelled",
        SLEEPER,
        [start()],
    ),
    Task(
        "a log all at once",
        "Look at the whole log of the run and note its last line under Results.",
        [
            Do("wait_for_run", {"run_id": "run-0001", "timeout_s": 30}),
            slip_in(
                "tail_log",
                {"run_id": "run-0001"},
                {"lines": 100_000},
                lambda t: {"lines": int(number(r"less than or equal to (\d+)", t))},
            ),
            Do("write_session_note", {"text": "The log ends with: line 2999"}),
        ],
        noted("line 2999", "Results"),
        TALKER,
        [start()],
    ),
    Task(
        "a state there is not",
        "Which runs are finished? Note their ids under Results.",
        [
            Do("wait_for_run", {"run_id": "run-0001", "timeout_s": 30}),
            slip_in("list_runs", {}, {"state": "finished"}, lambda t: {"state": find(r"'(ended|succeeded)'", t)}),
            Do("write_session_note", {"text": "Finished: run-0001."}),
        ],
        noted("Finished: run-0001", "Results"),
        JOB,
        [start()],
    ),
    Task(
        "an argument there is not",
        "What does the machine train on? Note it under Method.",
        [
            slip_in("gpu_status", {}, {"process": True}, lambda t: {find(r"did you mean '(\w+)'", t): True}),
            Do("write_session_note", {"section": "Method", "text": "The lab trains on the CPU here."}),
        ],
        noted("on the CPU", "Method"),
    ),
    Task(
        "a hypothesis without a smallest effect",
        "Test whether half the matrix_lr lowers val_bpb.",
        [
            Slip(
                "propose_and_run_experiment",
                {name: value for name, value in HYPOTHESIS.items() if name != "smallest_effect"},
                lambda t: ("propose_and_run_experiment", {**HYPOTHESIS, find(r"'(\w+)' is missing", t): 0.01}),
            )
        ],
        proposed,
    ),
    Task(
        "a direction in other words",
        "Test whether half the matrix_lr brings val_bpb down.",
        [
            slip_in(
                "propose_and_run_experiment",
                HYPOTHESIS,
                {"direction": "down"},
                lambda t: {"direction": find(r"'(lower)'", t)},
            )
        ],
        proposed,
    ),
    Task(
        "a change of a setting there is not",
        "Test whether half the matrix learning rate lowers val_bpb.",
        [
            slip_in(
                "propose_and_run_experiment",
                HYPOTHESIS,
                {"change": {"optimizer.matrix_learning_rate": 0.02}},
                lambda t: {"change": {find(r"(optimizer\.matrix_lr)", t): 0.02}},
            )
        ],
        proposed,
    ),
    Task(
        "a statement that says nothing",
        "Try half the matrix_lr.",
        [
            slip_in(
                "propose_and_run_experiment",
                HYPOTHESIS,
                {"statement": "better"},
                lambda t: {"statement": find(r'"statement": "([^"]+)"', t)},
            )
        ],
        proposed,
    ),
    Task(
        "a reason that is none",
        "Test half the matrix_lr without a test run: exp-0007 on the other machine just ran it.",
        [
            slip_in(
                "propose_and_run_experiment",
                HYPOTHESIS,
                {"skip_test_run": "yes"},
                lambda t: {"skip_test_run": find(r"'(exp-\d+ just ran it)'", t)},
            )
        ],
        lambda lab: proposed(lab) and lab.experiments.list()[0].skip_test_run == "exp-0007 just ran it",
    ),
    Task(
        "an experiment id from memory",
        "How does the experiment stand? Note its state under Results.",
        [
            slip_in(
                "list_experiments", {}, {"experiment_id": "exp-1"}, lambda t: {"experiment_id": find(r"(exp-\d{4})", t)}
            ),
            Do("write_session_note", {"text": "exp-0001 is under way.", "experiments": ["exp-0001"]}),
        ],
        noted("exp-0001 is under way", "Results"),
        None,
        [Do("propose_and_run_experiment", HYPOTHESIS)],
    ),
    Task(
        "a campaign without a budget",
        "Improve val_bpb for eight hours; I will propose with you.",
        [
            Slip(
                "run_campaign",
                CAMPAIGN,
                lambda t: ("run_campaign", {**CAMPAIGN, find(r"(hours) = 8", t): 8}),
            )
        ],
        lambda lab: [lab.campaigns.look(name).budget.hours for name in lab.campaigns.ledger.ids()] == [8],
    ),
    Task(
        "a campaign whose id is not named",
        "Stop the campaign.",
        [
            Slip(
                "run_campaign",
                {"action": "stop", "reason": "done"},
                lambda t: (
                    "run_campaign",
                    {"action": "stop", "campaign_id": find(r"(camp-\d{4})", t), "reason": "done"},
                ),
            )
        ],
        lambda lab: lab.campaigns.look("camp-0001").state == "ended",
        None,
        [Do("run_campaign", {**CAMPAIGN, "hours": 8})],
    ),
    Task(
        "a section there is not",
        "Note as a conclusion that the loss oscillates.",
        [
            slip_in(
                "write_session_note",
                {"text": "The loss oscillates late."},
                {"section": "Conclusions"},
                lambda t: {"section": find(r"(Analysis)", t)},
            )
        ],
        noted("oscillates", "Analysis"),
    ),
    Task(
        "a note about a run there is not",
        "Note that the run was quick.",
        [
            slip_in(
                "write_session_note",
                {"text": "It was quick."},
                {"runs": ["run-9"]},
                lambda t: {"runs": [find(r"(run-\d{4})", t)]},
            )
        ],
        noted("It was quick"),
        JOB,
        [start()],
    ),
    Task(
        "far too long a note",
        "Note all of this under Method (200 pages).",
        [
            slip_in(
                "write_session_note",
                {"section": "Method"},
                {"text": "page " * 50_000},
                lambda t: {"text": ("page " * 50_000)[: int(number(r"at most ([\d,]+)", t))]},
            )
        ],
        noted("page page", "Method"),
    ),
    Task(
        "a paper outside the workspace",
        "Take ../meerkats.md into memory; there is a copy in papers/.",
        [
            slip_in(
                "rag_index",
                {"wait_s": 60},
                {"paths": ["../meerkats.md"]},
                lambda t: {"paths": ["papers/meerkats.md"] if "workspace" in t else []},
            )
        ],
        lambda lab: any("eerkat" in hit.title for hit in lab.memory.search("who stands guard at dawn").hits),
        {"papers/meerkats.md": PAPER},
    ),
    Task(
        "a kind in the plural, a date in words",
        "Do recent papers say who stands guard? Note it under Analysis.",
        [
            Do("rag_index", {"wait_s": 60}),
            slip_in(
                "rag_search",
                {"query": "who stands guard at dawn"},
                {"kinds": ["papers"]},
                lambda t: {"kinds": [find(r"'(paper)'", t)]},
            ),
            slip_in(
                "rag_search",
                {"query": "who stands guard at dawn"},
                {"since": "last year"},
                lambda t: {"since": "2025" if re.search(r"YYYY", t) else ""},
            ),
            Do("write_session_note", {"section": "Analysis", "text": "A meerkat does (papers/meerkats.md)."}),
        ],
        noted("A meerkat does", "Analysis"),
        {"papers/meerkats.md": PAPER},
    ),
]
