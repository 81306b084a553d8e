"""The progress figure: what it shows, that it is drawn without network or browser, and that no text breaks it."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import pytest
from made_up_night import night

from experiments.record import ExperimentRecord
from experiments.report import figures
from experiments.report.progress import label, progress
from workspace.errors import NotFound

NASTY = '<script>alert(1)</script> $x_1$ & "q" \N{RIGHT-TO-LEFT OVERRIDE}'


def test_the_best_line_starts_at_the_control_and_follows_the_keeps() -> None:
    records = list(night(60))
    found = progress(records)
    kept = [record for record in records if record.verdict == "keep"]
    assert kept and len(found.points) == 60
    first = next(record for record in records if record.numbers)
    assert first.numbers and found.best[0] == (1, first.numbers.control_mean)
    assert [score for _, score in found.best[1:]] == [record.mean() for record in kept]
    assert found.noise_sd == pytest.approx(0.002, rel=0.5)
    crashed = [point for point in found.points if point.verdict == "crash"]
    assert crashed and all(point.score is None for point in crashed)


def test_scores_that_cannot_be_compared_are_left_out_and_counted() -> None:
    records = list(night(20))
    records[3] = records[3].model_copy(update={"yardstick": "z" * 64})
    other = records[4].hypothesis.model_copy(update={"metric": "val_loss"})
    records[4] = records[4].model_copy(update={"hypothesis": other})
    found = progress(records)
    assert len(found.points) == 18 and [point.place for point in found.points] == list(range(1, 19))
    assert sorted(found.left_out.values()) == [1, 1]
    assert len(progress(records, "val_loss").points) == 1


def test_a_change_is_named_shortly_whatever_it_consists_of() -> None:
    record = next(night(1))
    patch = "--- a/recipe/model.py\n+++ b/recipe/model.py\n@@ -1 +1 @@\n-a\n+b\n"

    def named(change: dict[str, float], patch: str | None) -> str:
        claim = record.hypothesis.model_copy(update={"change": change, "patch": patch})
        return label(record.model_copy(update={"hypothesis": claim}))

    assert named({"model.depth": 4}, None) == "depth = 4"
    assert named({"model.depth": 4, "model.width": 64}, None) == "depth = 4 +1"
    assert named({}, patch) == "patch of model.py"
    assert named({"model.depth": 4}, patch + patch.replace("model.py", "optim.py")) == "depth = 4 +2"


def test_nothing_to_show_is_said() -> None:
    with pytest.raises(NotFound, match="no experiment has a verdict yet"):
        progress([])
    with pytest.raises(NotFound, match=r"judged by mfu.*val_bpb"):
        progress(night(3), "mfu")


@pytest.mark.parametrize("count", [1, 8, 80])
def test_every_picture_is_drawn(count: int) -> None:
    from PIL import Image

    found = progress(night(count))
    picture = Image.open(io.BytesIO(figures.png(found, "a title")))
    assert picture.width == round(figures.WIDTH_IN * figures.DPI)
    colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    assert (0, 0x72, 0xB2) in colours, "the best line is there"
    drawn = figures.svg(found)
    assert ElementTree.fromstring(drawn).tag.endswith("svg") and drawn == figures.svg(found)


def test_names_of_kept_changes_lie_over_nothing() -> None:
    """Drawn again with the words' boxes looked at: with 80 points none covers a point, another name or the frame."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = progress(night(80, seed=9))
    figure = Figure(figsize=(figures.WIDTH_IN, figures.HEIGHT_IN), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    figures._draw(axes, found, "t")
    figures._lay_out(figure, axes)
    figures._label_keeps(figure, axes, found)
    boxes = [figures._words_box(text, canvas.get_renderer()) for text in axes.texts]
    assert len(boxes) >= 5
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        for point in found.points:
            if point.score is not None:
                x, y = axes.transData.transform((point.place, point.score))
                assert not (box.x0 < x < box.x1 and box.y0 < y < box.y1), point


def test_hostile_text_stays_text() -> None:
    def named(record: ExperimentRecord) -> ExperimentRecord:
        claim = record.hypothesis.model_copy(update={"change": {"data.note": NASTY}, "metric": NASTY})
        return record.model_copy(update={"hypothesis": claim, "sentence": NASTY})

    found = progress([named(record) for record in night(30)])
    assert figures.png(found, NASTY).startswith(b"\x89PNG")
    assert "<script" not in figures.svg(found, NASTY)
    page = figures.page(found, NASTY)
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page.replace("\\u003c", "<").replace(
        "\\u003e", ">"
    )


def test_the_interactive_page_needs_nothing_from_outside() -> None:
    page = figures.page(progress(night(20)), "a night")
    assert len(page) > 3_000_000, "plotly's JavaScript is inside"
    assert not re.search(r'<(script|link|img|iframe)[^>]+(src|href)\s*=\s*["\']?(https?:)?//', page)
