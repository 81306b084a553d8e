"""Pages of a log: complete, bounded, as a terminal would show them, at a cost that does not grow with the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.runs.screen import render
from training.runs.tail import MAX_LINE_CHARACTERS, PAGE_BYTES, SCAN_BYTES, tail
from workspace.errors import Refused

KEEP_PATH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "train.log"


def test_missing_and_empty_log(log: Path) -> None:
    assert tail(log).lines == [] and tail(log).cut == "there is no log yet"
    log.touch()
    page = tail(log)
    assert (page.lines, page.cursor, page.next_cursor, page.at_end, page.cut) == ([], 0, 0, True, None)


def test_last_lines_and_going_on(log: Path) -> None:
    log.write_text("".join(f"line {i}\n" for i in range(1000)))
    page = tail(log, lines=3)
    assert page.lines == ["line 997", "line 998", "line 999"]
    assert page.at_end and page.next_cursor == log.stat().st_size
    assert tail(log, lines=2, before=page.cursor).lines == ["line 995", "line 996"]
    with log.open("a") as file:
        file.write("line 1000\nhalf")
    more = tail(log, cursor=page.next_cursor)
    assert more.lines == ["line 1000", "half"] and more.partial
    with log.open("a") as file:
        file.write(" a line\n")
    assert tail(log, cursor=more.next_cursor).lines == ["half a line"]  # seen whole this time
    assert tail(log, lines=2, cursor=0).lines == ["line 0", "line 1"]


@KEEP_PATH
@given(
    lines=st.lists(st.text(alphabet="abü ", max_size=40), max_size=60),
    count=st.integers(1, 9),
    width=st.integers(1, 60),
    ended=st.booleans(),
)
def test_pages_put_together_are_the_log(log: Path, lines: list[str], count: int, width: int, ended: bool) -> None:
    text = "\n".join(lines) + ("\n" if ended and lines else "")
    log.write_text(text, encoding="utf-8")
    expected = text.removesuffix("\n").split("\n") if text else []
    size = log.stat().st_size

    forwards: list[str] = []
    cursor = 0
    while cursor < size:
        page = tail(log, lines=count, cursor=cursor, max_characters=max(width, 45))
        forwards += page.lines
        if page.partial:
            break
        assert page.next_cursor > cursor
        cursor = page.next_cursor
    assert forwards == expected

    backwards: list[str] = []
    before: int | None = None
    while before != 0 and size:
        page = tail(log, lines=count, before=before, max_characters=max(width, 45))
        backwards = page.lines + backwards
        assert before is None or page.cursor < before
        before = page.cursor
    assert backwards == expected


def test_a_filter_scans_at_most_four_mebibytes_and_goes_on(log: Path) -> None:
    filler = "x" * 99 + "\n"
    with log.open("w") as file:
        for mark in range(3):
            file.write(f"NEEDLE {mark}\n")
            file.write(filler * (3 * 2**20 // len(filler)))
    page = tail(log, contains="needle")
    found = page.lines
    calls = 1
    while page.cursor > 0:
        assert page.read_bytes < SCAN_BYTES + PAGE_BYTES
        assert page.cut and f"before={page.cursor}" in page.cut
        page = tail(log, contains="needle", before=page.cursor)
        found = page.lines + found
        calls += 1
    assert found == ["NEEDLE 0", "NEEDLE 1", "NEEDLE 2"]
    assert calls == 3
    page = tail(log, contains="NEEDLE", cursor=0)
    found = page.lines
    while not page.at_end:
        assert page.read_bytes < SCAN_BYTES + PAGE_BYTES
        page = tail(log, contains="NEEDLE", cursor=page.next_cursor)
        found += page.lines
    assert found == ["NEEDLE 0", "NEEDLE 1", "NEEDLE 2"]


def test_filter_minds_capitals_only_when_it_has_some(log: Path) -> None:
    log.write_text("Loss: 1\nloss: 2\n")
    assert tail(log, contains="loss").lines == ["Loss: 1", "loss: 2"]
    assert tail(log, contains="Loss").lines == ["Loss: 1"]
    assert tail(log, contains="loss", lines=1).lines == ["loss: 2"]
    assert tail(log, contains="loss", lines=1, cursor=0).lines == ["Loss: 1"]


def test_cost_does_not_grow_with_the_file(log: Path) -> None:
    """Counted in bytes read, so that the test means the same on every machine."""
    reads = []
    for size in (10**4, 10**10):
        with log.open("wb") as file:
            file.truncate(size)  # sparse
            file.seek(0, 2)
            file.write(b"\n" + b"".join(b"Step %d | Loss: 1.0\n" % i for i in range(5000)))
        page = tail(log, lines=50)
        assert page.lines[-1] == "Step 4999 | Loss: 1.0" and len(page.lines) == 50
        reads.append(page.read_bytes)
        assert tail(log, contains="no such text").read_bytes < SCAN_BYTES + PAGE_BYTES
    assert reads[0] <= 2**17 and reads[1] <= 2**17


def test_an_endless_line_is_read_in_part_only(log: Path) -> None:
    log.write_bytes(b"x" * (3 * PAGE_BYTES))
    page = tail(log)
    assert page.read_bytes <= 3 * PAGE_BYTES
    assert page.lines[0].startswith("[... the line's beginning is not shown] xxx")
    assert page.lines[0].endswith(" characters]")
    assert tail(log, cursor=0).next_cursor > 0


def test_result_is_bounded_and_says_what_was_cut(log: Path) -> None:
    log.write_text("".join(f"{i:04d} {'y' * 95}\n" for i in range(500)))
    page = tail(log, lines=400)
    assert sum(len(line) + 1 for line in page.lines) <= 12_000
    assert page.cut and "did not fit" in page.cut and f"before={page.cursor}" in page.cut
    assert page.lines[-1].startswith("0499")
    assert tail(log, lines=1, before=page.cursor).lines[0][:4] == f"{int(page.lines[0][:4]) - 1:04d}"
    page = tail(log, lines=400, cursor=0)
    assert page.cut and "cursor=next_cursor" in page.cut
    assert tail(log, lines=1, cursor=page.next_cursor).lines[0][:4] == f"{int(page.lines[-1][:4]) + 1:04d}"


def test_long_lines_are_cut_with_their_length(log: Path) -> None:
    log.write_text("a" * 5000 + "\n")
    assert tail(log).lines == ["a" * MAX_LINE_CHARACTERS + " [+3000 characters]"]


def test_secrets_are_masked_and_cannot_be_searched(log: Path) -> None:
    secret = "hf_abcdefghijklmnopqrstuvwxyz123456"
    log.write_text(f"login {secret}\nDB_PASSWORD=swordfish\n")
    text = "\n".join(tail(log).lines)
    assert "mnopqrst" not in text and "swordfish" not in text and "login" in text
    assert tail(log, contains="mnopqrst").lines == []
    assert tail(log, contains="login").lines != []


def test_a_private_key_is_masked_line_by_line_wherever_a_page_begins(log: Path) -> None:
    body = [f"MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ{n:04d}KEYBODYabc" for n in range(50)]
    key = ["-----BEGIN RSA PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED", "", *body, "-----END RSA PRIVATE KEY-----"]
    plain = ["step 2", "openssl prints -----BEGIN PRIVATE KEY----- and so on", "stillthesameepoch"]
    log.write_text("\n".join(["step 1", *key, *plain]) + "\n")
    whole = tail(log, cursor=0, lines=100).lines
    assert whole[: len(key) + 2] == ["step 1", *["***"] * len(key), "step 2"] and whole[-1] == "stillthesameepoch"
    middle = log.read_bytes().index(b"MIIEvQ", 3000)
    for page in (tail(log, lines=20), tail(log, cursor=middle, lines=90), tail(log, before=middle, lines=20)):
        assert "***" in page.lines and not any("KEYBODY" in line for line in page.lines)
    assert tail(log, contains="KEYBODY", lines=50).lines == []
    log.write_text("-----BEGIN PRIVATE KEY-----\nloss 3.1 is no key\nstep 3\n")
    assert tail(log).lines == ["***", "loss 3.1 is no key", "step 3"]


@pytest.mark.parametrize(
    "arguments", [{"lines": 0}, {"lines": 10**6}, {"cursor": -1}, {"contains": ""}, {"cursor": 1, "before": 2}]
)
def test_senseless_requests_are_refused(log: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(Refused):
        tail(log, **arguments)  # type: ignore[arg-type]


def test_cursor_beyond_the_end_of_a_shortened_log(log: Path) -> None:
    log.write_text("short\n")
    page = tail(log, cursor=10**9)
    assert page.lines == [] and page.at_end and page.cut and "ends at byte 6" in page.cut


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain\ntext\n", ["plain", "text"]),
        ("windows\r\nline\r\n", ["windows", "line"]),
        (" 10%|#   |\r 50%|##  |\r100%|####|\n", ["100%|####|"]),
        ("a long line\rshort\n", ["shortg line"]),
        ("a long line\r\x1b[Kshort\n", ["short"]),
        ("\x1b[31mred\x1b[0m and \x1b[1;32mgreen\x1b[m\n", ["red and green"]),
        ("typ\b\bwo\n", ["two"]),
        ("\x1b]0;title\x07text\x1b(B\n", ["text"]),
        ("outer 0\ninner 0\x1b[A\router 1\ninner 1\n", ["outer 1", "inner 1"]),
        ("bell\x07 null\x00 bidi\u202e zero\u200b\ttab\n", ["bell null bidi zero\ttab"]),
        ("half\x1b[", ["half"]),
        ("", [""]),
    ],
)
def test_screen(raw: str, shown: list[str]) -> None:
    assert [row.text for row in render(raw)] == shown


@KEEP_PATH
@given(st.text(alphabet="ab\r\n\b\x1b[]K1;A\x07mü", max_size=200))
def test_screen_leaves_no_control_character(raw: str) -> None:
    rows = render(raw)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for row in rows for c in row.text)
    assert [row.line for row in rows] == sorted({row.line for row in rows})
    assert len(rows) <= raw.removesuffix("\n").count("\n") + 1


def test_a_progress_bar_of_a_mebibyte_is_one_line(log: Path) -> None:
    bar = "".join(f"\r{i:6d}/20000 [{'#' * (i // 1000):<20}]" for i in range(20_001))
    log.write_text("before\n" + bar + "\nafter\n")
    assert tail(log, lines=2).lines == ["20000/20000 [####################]".rjust(35), "after"]


NOISY = """\
step 1 loss 2.3
2026-11-21 08:00:01,123 - trainer - WARNING - loss scale lowered
2026-11-21 08:00:01 | ERROR    | loader:fetch:17 - shard 3 is gone
the ERROR column of the table is empty
error rate 0.03, 0 errors, Killed 2 workers
/usr/lib/python3/x.py:12: UserWarning: slow path
ERROR:root:cannot write
[ERROR] engine: no slot
E1121 08:00:00.123456 77 client.cc:88] refused
gcc: fatal error: no input files
[rank1]: Traceback (most recent call last):
[rank1]:   File "/home/u/t.py", line 3, in <module>
[rank1]:     main()
[rank1]: ValueError: bad batch
Traceback (most recent call last):
  File "/home/u/t.py", line 3, in <module>
    main()
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/home/u/t.py", line 9, in <module>
    give_up()
RuntimeError: no more
done
""".splitlines()
WARNINGS = {1, 5}
ERRORS = {2, 6, 7, 8, 9, *range(10, 18), 19, *range(21, 25)}


def test_levels_are_marks_of_loggers_and_whole_tracebacks_never_words(log: Path) -> None:
    log.write_text("\n".join(NOISY) + "\n")
    assert tail(log, level="error").lines == [NOISY[i] for i in sorted(ERRORS)]
    assert tail(log, level="warning", cursor=0).lines == [NOISY[i] for i in sorted(ERRORS | WARNINGS)]
    assert tail(log, level="error", contains="rank1").lines == NOISY[10:14]
    assert tail(log, level="error", lines=2).lines == NOISY[23:25]


def test_a_traceback_over_the_edges_of_pages_and_pieces_stays_whole(log: Path) -> None:
    frames = [f'  File "/home/u/deep.py", line {n}, in f\n    f({n})' for n in range(40)]
    block = "Traceback (most recent call last):\n" + "\n".join(frames) + "\nRecursionError: too deep\n"
    filler = "step loss 2.0 and nothing else to tell\n"
    log.write_text((filler * 6500 + block) * 4)  # about 1 MB: the search reads it in pieces
    expected = block.splitlines() * 4
    forwards: list[str] = []
    cursor = 0
    while True:
        page = tail(log, level="error", lines=7, cursor=cursor)
        forwards += page.lines
        if page.at_end:
            break
        cursor = page.next_cursor
    assert forwards == expected
    backwards: list[str] = []
    before: int | None = None
    while before != 0:
        page = tail(log, level="error", lines=11, before=before)
        backwards = page.lines + backwards
        before = page.cursor
    assert backwards == expected
