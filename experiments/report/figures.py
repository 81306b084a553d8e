"""The progress figure: PNG and SVG by matplotlib (no browser needed), an interactive page by plotly (works offline).

Colours are Okabe and Ito's, which colour-blind readers tell apart; every verdict has a shape of its own as well.
"""

from __future__ import annotations

import html
import io
import statistics
import warnings
from collections.abc import Sequence
from typing import Any

from experiments.report.progress import Point, Progress
from experiments.words import count
from sessions.text import clean

BLUE, GREEN, ORANGE, RED, GREY = "#0072B2", "#009E73", "#E69F00", "#D55E00", "#7A7A7A"
WIDTH_IN, HEIGHT_IN, DPI = 6.5, 3.9, 300
BAND_SDS = 2  # the noise band: so many standard deviations of one run to either side
ROOM = 0.06  # of the axis, beyond the outermost point
SHOWN_SHARE = 0.95  # of the scores; what lies further out is marked at the edge
MOST_NAMED = 40  # kept changes, the largest gains: the picture has no room for more names
# verdict -> word, matplotlib marker, plotly symbol, colour, filled
LOOK: dict[str, tuple[str, str, str, str, bool]] = {
    "keep": ("kept", "o", "circle", GREEN, True),
    "discard": ("discarded", "o", "circle-open", GREY, False),
    "inconclusive": ("undecided", "D", "diamond-open", ORANGE, False),
    "none": ("no score (crash, invalid, no effect)", "x", "x-thin-open", RED, False),
}
ORDER = ("discard", "inconclusive", "none", "keep")


def groups(progress: Progress) -> dict[str, list[Point]]:
    """The points by how they are drawn."""
    found: dict[str, list[Point]] = {name: [] for name in ORDER}
    for point in progress.points:
        found[point.verdict if point.score is not None and point.verdict in LOOK else "none"].append(point)
    return {name: points for name, points in found.items() if points}


def limits(progress: Progress) -> tuple[float, float]:
    """The axis: the best line with its band and nearly all scores; some that are far worse lie beyond it."""
    scores = sorted(point.score for point in progress.points if point.score is not None)
    best = [score for _, score in progress.best]
    band = BAND_SDS * (progress.noise_sd or 0.0)
    near = [*best, *(score + side * band for score in best for side in (-1, 1))]
    if scores:
        cut = max(1, round(SHOWN_SHARE * len(scores)))
        near += scores[:cut] if progress.direction == "lower" else scores[-cut:]
        middle, spread = statistics.median(near), max(near) - min(near)
        near += [score for score in scores if abs(score - middle) <= spread]
    low, high = (min(near), max(near)) if near else (0.0, 1.0)
    room = ROOM * (high - low) or abs(high) * ROOM or 1.0
    return low - room, high + room


def steps(progress: Progress) -> tuple[list[float], list[float]]:
    """The best score so far as a line of steps: x and y."""
    x: list[float] = []
    y: list[float] = []
    for i, (place, score) in enumerate(progress.best):
        following = progress.best[i + 1][0] if i + 1 < len(progress.best) else len(progress.points) + 1
        x += [place if i else 0, following]
        y += [score, score]
    return x, y


# -- matplotlib -------------------------------------------------------------------------------------------------------


def png(progress: Progress, title: str = "") -> bytes:
    """300 dots an inch, 6.5 inches wide."""
    return _save(progress, title, "png")


def svg(progress: Progress, title: str = "") -> str:
    """The same as a vector picture, to stand inside an HTML page."""
    text = _save(progress, title, "svg").decode("utf-8")
    return text[text.index("<svg") :]


def _save(progress: Progress, title: str, form: str) -> bytes:
    # not pyplot: it keeps figures in globals and wants the main thread
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8, "axes.labelsize": 8.5,
        "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "legend.fontsize": 7.2, "axes.linewidth": 0.7,
        "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "path", "svg.hashsalt": "lab-mcp",
        "text.parse_math": False,
    }  # fmt: skip
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter the font lacks is drawn as a box
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI if form == "png" else 100)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        _draw(axes, progress, title)
        _lay_out(figure, axes)
        _label_keeps(figure, axes, progress)
        file = io.BytesIO()
        metadata = {"Date": None, "Creator": "lab-mcp"} if form == "svg" else {"Software": "lab-mcp"}
        figure.savefig(file, format=form, metadata=metadata, facecolor="white")
    return file.getvalue()


def _draw(axes: Any, progress: Progress, title: str) -> None:
    low, high = limits(progress)
    axes.set_ylim(low, high)
    axes.set_xlim(0, max(len(progress.points), 1) + 1)
    x, y = steps(progress)
    if x:
        if progress.noise_sd:
            band = BAND_SDS * progress.noise_sd
            axes.fill_between(
                x, [v - band for v in y], [v + band for v in y], color=BLUE, alpha=0.13, linewidth=0,
                label=f"noise of one run, ±{BAND_SDS} SD (SD = {progress.noise_sd:.2g})",
            )  # fmt: skip
        axes.plot(x, y, color=BLUE, linewidth=1.3, label="best so far", zorder=2)
    for name, points in groups(progress).items():
        word, marker, _, colour, filled = LOOK[name]
        inside, beyond = _split(points, low, high, progress.direction)
        axes.plot(
            [p.place for p in inside], [_drawn_at(p, low, high) for p in inside], marker, color=colour,
            markersize=6 if name == "keep" else 4.2, markerfacecolor=colour if filled else "white",
            markeredgewidth=0.6 if filled else 1.0, markeredgecolor="white" if filled else colour,
            label=f"{word} ({len(points)})", zorder=4 if filled else 3, clip_on=False,
        )  # fmt: skip
        edge = high if progress.direction == "lower" else low
        arrow = "^" if progress.direction == "lower" else "v"
        axes.plot([p.place for p in beyond], [edge] * len(beyond), arrow, color=colour, markersize=4, clip_on=False)
    axes.set_xlabel("Experiment, in the order proposed")
    better = "lower is better" if progress.direction == "lower" else "higher is better"
    axes.set_ylabel(f"{progress.words}\n{better}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.5, zorder=0)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(clean(title)[:90], fontsize=9, loc="left")
    axes.figure.legend(loc="lower center", ncols=3, frameon=False, handletextpad=0.5, columnspacing=1.4)


def _lay_out(figure: Any, axes: Any) -> None:
    """Give the axes the room their numbers and the legend leave, and no more: names are placed in it afterwards."""
    figure.draw_without_rendering()
    renderer, size, gap = figure.canvas.get_renderer(), figure.bbox, 0.008
    drawn, frame = axes.get_tightbbox(renderer), axes.get_window_extent(renderer)
    legend = figure.legends[0].get_window_extent(renderer)
    left = (frame.x0 - drawn.x0) / size.width + gap
    right = (drawn.x1 - frame.x1) / size.width + gap
    bottom = (frame.y0 - drawn.y0 + legend.y1) / size.height + gap
    top = (drawn.y1 - frame.y1) / size.height + 2 * gap
    axes.set_position((left, bottom, 1 - left - right, 1 - bottom - top))
    figure.draw_without_rendering()


def _split(points: Sequence[Point], low: float, high: float, direction: str) -> tuple[list[Point], list[Point]]:
    """Those on the axis, and those beyond its worse end."""

    def beyond(point: Point) -> bool:
        return point.score is not None and not low <= point.score <= high

    return [p for p in points if not beyond(p)], [p for p in points if beyond(p)]


def _label_keeps(figure: Any, axes: Any, progress: Progress) -> None:
    """Name the kept changes where there is room: the largest gains first, none over a point or another name."""
    import numpy as np
    from matplotlib.path import Path
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    renderer = figure.canvas.get_renderer()
    low, high = limits(progress)
    scale = figure.dpi / 72
    places = {p.place: axes.transData.transform((p.place, _drawn_at(p, low, high))) for p in progress.points}
    spots = np.array(list(places.values())).reshape(-1, 2)
    words: list[Bbox] = []
    leads: list[Path] = []
    frame = axes.get_window_extent(renderer)
    line = Path([axes.transData.transform(corner) for corner in zip(*steps(progress), strict=True)] or [(0, 0)])
    kept = [p for p in progress.points if p.verdict == "keep" and p.score is not None and low <= p.score <= high]
    for point in sorted(kept, key=lambda p: -(p.effect or 0.0))[:MOST_NAMED]:
        for dx, dy, across in _PLACES:
            text = axes.annotate(
                point.label, (point.place, point.score), (dx, dy), textcoords="offset points", fontsize=7,
                ha=across, va="center", color="#1B1B1B", zorder=5, annotation_clip=False,
                path_effects=[withStroke(linewidth=2, foreground="white")],
                arrowprops={"arrowstyle": "-", "color": "#555555", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
            )  # fmt: skip
            box = _words_box(text, renderer).padded(scale)
            x, y = places[point.place]
            lead = Path([(x, y), (x + dx * scale, y + dy * scale)])
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            crossed = any(lead.intersects_bbox(other) for other in words)
            crossed = crossed or any(other.intersects_bbox(box, filled=False) for other in (line, *leads))
            around = box.padded(3 * scale)
            covered = bool(((spots > around.min) & (spots < around.max)).all(axis=1).any())
            if inside and not crossed and not covered and not any(box.overlaps(other) for other in words):
                words.append(box)
                leads.append(lead)
                break
            text.remove()


def _drawn_at(point: Point, low: float, high: float) -> float:
    return low if point.score is None else min(max(point.score, low), high)


def _words_box(annotation: Any, renderer: Any) -> Any:
    """The words' own box, without the line that leads to the point."""
    from matplotlib.text import Text

    annotation.update_positions(renderer)
    return Text.get_window_extent(annotation, renderer)


# offsets in points, and which side of the words is there: below and right first, where a falling line leaves room
_PLACES = [
    (dx * side, dy, "left" if side > 0 else "right")
    for dy in (-10, 11, -20, 21, -32, 33, -46, 47, -60)
    for dx in (7, 16, 30)
    for side in (-1, 1)
]


# -- plotly -----------------------------------------------------------------------------------------------------------


def page(progress: Progress, title: str) -> str:
    """An HTML page with the interactive figure; plotly's JavaScript is inside."""
    import plotly.graph_objects as go

    figure = go.Figure()
    x, y = steps(progress)
    if x:
        if progress.noise_sd:
            band = BAND_SDS * progress.noise_sd
            figure.add_scatter(
                x=[*x, *reversed(x)], y=[*(v + band for v in y), *(v - band for v in reversed(y))], fill="toself",
                fillcolor="rgba(0,114,178,0.13)", line={"width": 0}, hoverinfo="skip", mode="lines",
                name=f"noise of one run, ±{BAND_SDS} SD (SD = {progress.noise_sd:.2g})",
            )  # fmt: skip
        figure.add_scatter(x=x, y=y, mode="lines", line={"color": BLUE, "width": 2}, name="best so far")
    low, high = limits(progress)
    for name, points in groups(progress).items():
        word, _, symbol, colour, filled = LOOK[name]
        figure.add_scatter(
            x=[p.place for p in points], y=[low if p.score is None else p.score for p in points], mode="markers",
            marker={"symbol": symbol, "color": colour, "size": 11 if filled else 8, "line": {"width": 1.5}},
            name=f"{word} ({len(points)})", customdata=[_hover(p, progress.metric) for p in points],
            hovertemplate="%{customdata}<extra></extra>", cliponaxis=False,
        )  # fmt: skip
    better = "lower is better" if progress.direction == "lower" else "higher is better"
    figure.update_layout(
        template="plotly_white", title={"text": html.escape(title)}, font={"family": "system-ui, sans-serif"},
        xaxis={"title": "Experiment, in the order proposed", "rangemode": "tozero"},
        yaxis={"title": f"{html.escape(progress.words)}, {better}", "range": [low, high]},
        legend={"orientation": "h", "y": -0.18}, hovermode="closest", margin={"l": 80, "r": 24, "t": 60, "b": 90},
    )  # fmt: skip
    text: str = figure.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False, "responsive": True})
    head = (
        f'<head><meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
    )
    return text.replace("<head>", head, 1)


def _hover(point: Point, metric: str) -> str:
    lines = [f"<b>{point.experiment}</b> {point.verdict}", html.escape(point.change[:120])]
    if point.score is not None:
        lines.append(f"{html.escape(metric)} {point.score:.6g} (mean of {count(point.runs, 'run')})")
    if point.effect is not None:
        lines.append(f"gain {point.effect:+.4g}, {point.low:+.4g} to {point.high:+.4g}")
    return "<br>".join(lines)
