"""What the pages for a browser show: the lab at a glance, a run with its curve, and whatever else has an address.

HTML without script. Every text from a run, a paper or a person goes through `escape`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sessions.export import rendered
from tools import resources
from tools.hardware import summary
from tools.lab import Lab
from training.runs.records import ENDED, LIVE, RunRecord

SCHEME = "lab://"
SHOWN = 15  # runs, experiments and pages of the notebook on the first page
POINTS = 200
LOG_LINES = 30
WIDTH, HEIGHT, EDGE = 720, 220, 36  # of a curve, in its own units
STYLE = """
main { font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; font-size: 16px; }
.way { font-size: .85rem; margin: 0 0 1.2rem; } h1 .verdict { font-size: .5em; vertical-align: middle; }
h2 { margin-top: 2.2rem; } .table table { width: 100%; } .soft { color: var(--soft); }
.verdict.succeeded { background: var(--keep-wash); color: var(--keep); }
.verdict.failed, .verdict.lost, .verdict.timed_out { background: var(--bad-wash); color: var(--bad); }
.verdict.running, .verdict.starting, .verdict.queued { background: var(--open-wash); color: var(--open); }
.machine { border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1rem; background: var(--wash);
  max-width: none; font-size: .9rem; }
progress { width: 8rem; height: .6rem; accent-color: var(--blue); }
td.words { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; } td { font-size: .9rem; }
figure.curve { color: var(--ink); } figure.curve svg { background: none; max-width: 44rem; }
pre { font-size: .8rem; line-height: 1.5; max-height: 40rem; overflow: auto; }
"""


def home(lab: Lab) -> str:
    """The lab at a glance."""
    overview = lab.experiments.overview()
    best = f"{_link(f'experiments/{overview.best.experiment}', overview.best.experiment)}: " if overview.best else ""
    parts = [
        f"<h1>{escape(lab.workspace.root.name)}</h1>",
        f'<p class="machine">{escape(summary(lab.hardware.latest()))}</p>',
        f"<p><strong>Best so far.</strong> {best}"
        + escape(overview.best.sentence or "" if overview.best else "Nothing was kept yet.")
        + "</p>",
        "".join(f'<p class="soft">{escape(line)}</p>' for line in overview.next),
        "<h2>Running and waiting</h2>",
        _live(lab.runs.list(states=LIVE, limit=50)),
        "<h2>Experiments</h2>",
        _experiments(lab),
        *_campaigns(lab),
        "<h2>Runs</h2>",
        _runs(lab.runs.list(states=ENDED, limit=SHOWN)),
        "<h2>Notebook</h2>",
        _notebook(lab),
    ]
    documents = [item for item in resources.listed(lab) if "/" not in item.uri.removeprefix(SCHEME)]
    links = " · ".join(_link(item.uri.removeprefix(SCHEME), item.title) for item in documents)
    return "\n".join([*parts, f"<h2>Documents</h2><p>{links or 'none yet'}</p>"])


def view(lab: Lab, uri: str) -> str:
    """The page of one address. Raises `NotFound` naming the closest."""
    text, kind = resources.read(lab, uri)
    path = uri.removeprefix(SCHEME)
    way = f'<p class="way">{_link("", "the lab", "/")}</p>'
    if kind == resources.MARKDOWN:
        return way + rendered(text)
    if path.startswith("runs/") and kind == resources.JSON:
        return way + _run(lab, path.removeprefix("runs/"))
    head = f"<h1>{escape(path)}</h1>"
    if kind == resources.JSON:
        return way + head + _facts(json.loads(text))
    if kind == resources.TABLE:
        return way + head + _tabular(text)
    return way + head + f"<pre>{escape(text)}</pre>"


def _live(live: Sequence[RunRecord]) -> str:
    rows = []
    for run in live:
        told = run.progress or {}
        fraction = told.get("fraction")
        bar = "" if fraction is None else f'<progress max="1" value="{fraction:.3f}">{fraction:.0%}</progress>'
        left = f"{told['eta_s']:.0f} s" if told.get("eta_s") is not None else escape(run.waiting_for or "")
        cells = [_link(f"runs/{run.id}", run.id), _badge(run.state), escape(run.name), bar, _number(told.get("loss"))]
        rows.append([*cells, left])
    return _table(["run", "state", "name", "done", "loss", "left"], rows, right=[4]) if rows else _soft("nothing")


def _runs(ended: Sequence[RunRecord]) -> str:
    rows = [
        [
            _link(f"runs/{run.id}", run.id),
            _badge(run.state),
            escape(run.name or run.kind)
            + (f'<br><span class="soft">{escape(run.reason)}</span>' if run.reason else ""),
            escape(run.created_at[:16].replace("T", " ")),
            _number((run.summary or {}).get("train_loss")),
            _number((run.summary or {}).get("val_bpb")),
        ]
        for run in ended
    ]
    return _table(["run", "state", "name", "begun", "loss", "val_bpb"], rows, right=[4, 5]) if rows else _soft("none")


def _experiments(lab: Lab) -> str:
    rows = [
        [
            _link(f"experiments/{tried.id}", tried.id),
            _badge(tried.verdict or tried.state),
            f"{escape(tried.hypothesis.statement)}"
            + (f'<br><span class="soft">{escape(tried.sentence)}</span>' if tried.sentence else ""),
        ]
        for tried in lab.experiments.list(limit=SHOWN)
    ]
    return _table(["experiment", "verdict", "hypothesis"], rows) if rows else _soft("none yet")


def _campaigns(lab: Lab) -> list[str]:
    rows = [
        [_link(f"campaigns/{c.campaign_id}", c.campaign_id), _badge(c.state), escape(c.goal)]
        for c in lab.campaigns.list(SHOWN)
    ]
    return ["<h2>Campaigns</h2>", _table(["campaign", "state", "goal"], rows)] if rows else []


def _notebook(lab: Lab) -> str:
    rows = [[_link(f"sessions/{page.id}", page.id), escape(page.title)] for page in lab.notebook.list(limit=SHOWN)]
    return _table(["page", "title"], rows) if rows else _soft("none yet")


def _run(lab: Lab, run_id: str) -> str:
    run = lab.runs.get(run_id)
    detail = lab.runs.detail(run_id, points=POINTS)
    log = lab.runs.tail(run_id, lines=LOG_LINES, max_characters=8_000)
    about = {
        "name": run.name,
        "reason": run.reason,
        "failure": run.failure_class,
        "experiment": run.experiment,
        "begun": run.started_at or run.created_at,
        "ended": run.ended_at,
        "devices": ", ".join(run.devices) or "cpu",
        "folder": run.folder,
    }
    parts = [f"<h1>{escape(run.id)} {_badge(run.state)}</h1>", _facts(about)]
    for name, label in (("loss", "training loss"), ("val_bpb", "val_bpb, bits per byte on held-back text")):
        parts.append(_curve([(p["step"], p[name]) for p in detail["curve"] if name in p and "step" in p], label))
    for alert in detail["alerts"]:
        parts.append(f"<p>{_badge(str(alert.get('class', 'alert')))} {escape(str(alert.get('text', '')))}</p>")
    if detail["summary"]:
        parts += ["<h2>Result</h2>", _facts(detail["summary"])]
    parts += [f"<h2>{_link(f'runs/{run.id}/log', 'Log')}</h2>", f"<pre>{escape(chr(10).join(log.lines))}</pre>"]
    if detail["config"]:
        parts += ["<h2>Settings</h2>", _facts(detail["config"])]
    return "\n".join(parts)


def _curve(points: Sequence[tuple[float, float]], label: str) -> str:
    """A line over the steps, as a figure; nothing when there are fewer than two points."""
    points = [(x, y) for x, y in points if isinstance(x, int | float) and isinstance(y, int | float)]
    if len(points) < 2:
        return ""
    (left, right), (low, high) = ((min(v), max(v)) for v in zip(*points, strict=True))
    across, up = (WIDTH - 2 * EDGE) / ((right - left) or 1), (HEIGHT - 2 * EDGE) / ((high - low) or 1)
    line = " ".join(f"{EDGE + (x - left) * across:.1f},{HEIGHT - EDGE - (y - low) * up:.1f}" for x, y in points)
    words = [
        (EDGE, EDGE - 10, "start", f"{high:.4g}"),
        (EDGE, HEIGHT - EDGE + 16, "start", f"step {left:g}"),
        (WIDTH - EDGE, HEIGHT - EDGE + 16, "end", f"step {right:g}"),
        (WIDTH - EDGE, EDGE - 10, "end", f"last {points[-1][1]:.4g}, lowest {low:.4g}"),
    ]
    texts = "".join(f'<text x="{x}" y="{y}" text-anchor="{where}">{text}</text>' for x, y, where, text in words)
    return (
        f'<figure class="curve"><figcaption>{escape(label)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)} over the steps" '
        f'font-size="12" fill="currentColor"><path d="M{EDGE} {EDGE}V{HEIGHT - EDGE}H{WIDTH - EDGE}" fill="none" '
        f'stroke="currentColor" opacity=".35"/><polyline points="{line}" fill="none" stroke="var(--blue)" '
        f'stroke-width="2"/>{texts}</svg></figure>'
    )


def _facts(content: Mapping[str, Any]) -> str:
    """Names and values as a table; what has parts is shown as its parts."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        parts = value if isinstance(value, Mapping) and value else {"": value}
        flat |= {f"{name}.{part}" if part else name: inner for part, inner in parts.items()}
    rows = [[escape(name), _value(value)] for name, value in flat.items() if value not in (None, "", [], {})]
    return _table(["", ""], rows) if rows else ""


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return escape(value)
    return escape(json.dumps(value, ensure_ascii=False))


def _tabular(text: str) -> str:
    """A table of tab-separated lines; lines that begin with # say something about it, above it."""
    lines = text.splitlines()
    notes = "".join(_soft(line.lstrip("# ")) for line in lines if line.startswith("#"))
    head, *rows = [[escape(cell) for cell in line.split("\t")] for line in lines if not line.startswith("#")] or [[]]
    return notes + (_table(head, rows) if any(head) else _soft("none yet"))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Cells are HTML."""

    def cell(kind: str, number: int, text: str) -> str:
        name = "number" if number in right else "" if number == 0 else "words" if len(text) > 60 else ""
        return f'<{kind} class="{name}">{text}</{kind}>' if name else f"<{kind}>{text}</{kind}>"

    head = "".join(cell("th", n, column) for n, column in enumerate(columns)) if any(columns) else ""
    body = "".join(f"<tr>{''.join(cell('td', n, text) for n, text in enumerate(row))}</tr>" for row in rows)
    return f'<div class="table"><table>{f"<tr>{head}</tr>" if head else ""}{body}</table></div>'


def _badge(word: str) -> str:
    return f'<span class="verdict {escape(word)}">{escape(word.replace("_", " "))}</span>'


def _link(path: str, text: str, before: str = "/view/") -> str:
    return f'<a href="{before}{escape(path)}">{escape(text)}</a>'


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _soft(words: str) -> str:
    return f'<p class="soft">{escape(words)}</p>'
