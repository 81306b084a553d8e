"""The parts of a page that are the lab's own record: the head's facts, the table of calls, the closing summary."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from sessions.entry import Entry, Links
from sessions.text import code, cut, inline
from workspace import clock

ID = re.compile(r"\b(?:run|exp)-\d{4,}\b")
BARE_ID = re.compile(rf"(?<![\[/`\w-]){ID.pattern}(?![\]/`\w-])")  # not yet part of a link, a path or code
ARXIV = re.compile(r"(?:arxiv:)?(\d{4}\.\d{4,5}(?:v\d+)?|[a-z\-]+/\d{7})", re.IGNORECASE)
MOST_NAMED = 12  # in the head of a page
UP = "../../"  # from docs/sessions/ to the workspace


def mentioned(text: str) -> Links:
    """The runs and experiments whose ids occur in `text`, each once, in order."""
    found = list(dict.fromkeys(ID.findall(text)))
    return Links(tuple(i for i in found if i.startswith("run-")), tuple(i for i in found if i.startswith("exp-")))


def merged(*parts: Links) -> Links:
    def union(name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item for part in parts for item in getattr(part, name)))

    return Links(union("runs"), union("experiments"), union("papers"))


def moment(at: str, since: str) -> str:
    """`14:02`, with the date before it when that is not the day of `since`."""
    return at[11:16] if at[:10] == since[:10] else f"{at[:10]} {at[11:16]}"


def day(at: str) -> str:
    date = datetime.fromisoformat(at)
    return f"{date.day} {date:%B %Y}"


def reference(item: str) -> str:
    """A link to the folder of a run or experiment, to a paper's file, to arXiv; plain text for anything else."""
    if ID.fullmatch(item):
        return f"[{item}]({UP}{'runs' if item.startswith('run-') else 'experiments'}/{item}/)"
    if found := ARXIV.fullmatch(item):
        return f"[arXiv:{found[1]}](https://arxiv.org/abs/{found[1]})"
    if item.startswith("papers/") and ".." not in item:
        return f"[{inline(item.removeprefix('papers/'))}]({UP}{quote(item)})"
    return inline(item)


def links(about: Links) -> list[str]:
    return [reference(item) for item in (*about.runs, *about.experiments, *about.papers)]


def about(entries: Iterable[Entry]) -> list[str]:
    """The head's lines on what the session touched."""
    everything = merged(*(entry.links for entry in entries))
    named = [("Runs", everything.runs), ("Experiments", everything.experiments), ("Papers", everything.papers)]
    return [
        f"{name}: {', '.join(map(reference, items[:MOST_NAMED]))}"
        + (f" and {len(items) - MOST_NAMED} more" if len(items) > MOST_NAMED else "")
        for name, items in named
        if items
    ]


def calls(entries: Sequence[Entry]) -> list[str]:
    """The journal: one row for each call that changed something."""
    made = [entry for entry in entries if entry.kind == "journal"]
    if not made:
        return []
    lines = ["## Journal", "", "Every call that changed something, in order.", ""]
    lines += ["| time | call | arguments | outcome |", "|---|---|---|---|"]
    return lines + [_row(entry, entries[0].at) for entry in made]


@lru_cache(maxsize=8192)  # a page is written again with every entry; its rows stay the same
def _row(entry: Entry, since: str) -> str:
    when = entry.at[11:19] if entry.at[:10] == since[:10] else f"{entry.at[:10]} {entry.at[11:19]}"
    outcome = ID.sub(lambda m: reference(m[0]), inline(cut(entry.outcome or "", 300)))
    return f"| {when} | {inline(entry.tool or '')} | {_arguments(entry.arguments or {})} | {outcome} |"


def _arguments(arguments: dict[str, Any]) -> str:
    def shown(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return cut(text, 80)

    given = [code(f"{name}={shown(value)}") for name, value in arguments.items() if value not in (None, "", [], {})]
    return " ".join(given[:8]) + (f" and {len(given) - 8} more" if len(given) > 8 else "")


def summary(entries: Sequence[Entry]) -> list[str]:
    """What a closed session came to, from the facts its events carried."""
    everything = merged(*(entry.links for entry in entries))
    runs: dict[str, dict[str, Any]] = {run: {} for run in everything.runs}
    experiments: dict[str, dict[str, Any]] = {experiment: {} for experiment in everything.experiments}
    for entry in entries:
        if entry.kind in ("event", "close"):
            for fact in entry.data.get("facts", [entry.data]):
                if fact.get("experiment") and not fact.get("run"):
                    experiments.setdefault(str(fact["experiment"]), {}).update(fact)
                elif fact.get("run"):
                    runs.setdefault(str(fact["run"]), {}).update(fact)
    lines = ["## Summary", "", _counts(entries, len(runs), len(experiments)), ""]
    if runs:
        lines += ["| run | name | state | result | time |", "|---|---|---|---|---|"]
        for run, facts in runs.items():
            cells = [reference(run), _cell(facts.get("name")), _cell(facts.get("state")), _result(facts)]
            lines.append(f"| {' | '.join(cells)} | {_duration(facts.get('elapsed_s'))} |")
        lines.append("")
    for best in _best(runs):
        lines += [best, ""]
    if experiments:
        lines += ["| experiment | what was tried | verdict | result |", "|---|---|---|---|"]
        for experiment, facts in experiments.items():
            tried, verdict = _cell(facts.get("change") or facts.get("statement")), _cell(facts.get("verdict"))
            verdict = f"**{verdict}**" if verdict else ""
            lines.append(f"| {reference(experiment)} | {tried} | {verdict} | {_result(facts)} |")
        lines.append("")
    return lines[:-1]


def _counts(entries: Sequence[Entry], runs: int, experiments: int) -> str:
    def many(number: int, noun: str) -> str:
        return f"{number} {noun}{'' if number == 1 else 's'}"

    kinds = [entry.kind for entry in entries]
    closed = next(entry for entry in reversed(entries) if entry.kind == "close")
    lasted = _duration(clock.seconds_between(entries[0].at, closed.at))
    parts = [many(kinds.count("note"), "note"), many(kinds.count("journal"), "call"), many(runs, "run")]
    return f"{', '.join(parts)} and {many(experiments, 'experiment')} in {lasted}."


def _best(runs: dict[str, dict[str, Any]]) -> list[str]:
    """For each metric the best run, lower being better unless an event's `direction` says `higher`."""
    by_metric: dict[str, list[tuple[float, str, dict[str, Any]]]] = {}
    for run, facts in runs.items():
        if isinstance(facts.get("value"), (int, float)) and facts.get("metric"):
            sign = -1 if facts.get("direction") == "higher" else 1
            by_metric.setdefault(str(facts["metric"]), []).append((sign * float(facts["value"]), run, facts))
    best = [min(found) for found in by_metric.values() if len(found) > 1]
    return [f"Best result: **{_result(facts)}**, {reference(run)}." for _, run, facts in best]


def _result(facts: dict[str, Any]) -> str:
    value = facts.get("value")
    if value is None:
        return _cell(facts.get("result"))
    number = f"{value:.6g}" if isinstance(value, (int, float)) else inline(str(value))
    return f"{_cell(facts.get('metric'))} {number}".strip()


def _cell(value: Any) -> str:
    return "" if value is None else inline(cut(str(value), 160))


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
