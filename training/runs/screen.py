"""What a terminal would show for a piece of a log: progress bars folded, control sequences gone."""

from __future__ import annotations

import re
from typing import NamedTuple

# CSI ... final byte; OSC ... BEL or ST; other two-character escapes; and what drives the cursor
_CONTROL = re.compile(
    r"\x1b\[(?P<args>[0-9;:?<=>]*)[ -/]*(?P<final>[@-~])"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)"
    r"|\x1b[ -/]*[0-~]"
    r"|(?P<move>[\r\n\b])"
)
_VERTICAL = re.compile(r"\x1b\[[0-9]*[AB]")
# control characters (tab and newline stay) and the marks that reorder text in front of a reader
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
MAX_COLUMN = 8192  # of a line that is written over; a plain line may be of any length


class Row(NamedTuple):
    """A line of the screen, and which line of the text (counted from 0) first wrote to it."""

    line: int
    text: str


def clean(text: str) -> str:
    """Without control characters and invisible marks."""
    return _INVISIBLE.sub("", text)


def render(text: str) -> list[Row]:
    """The lines of `text` as a terminal would show them; a newline at the very end begins no further line.

    Knows carriage return, backspace, erase-in-line and the cursor moves progress bars use; everything else is dropped.
    There are as many rows as lines, or fewer where the text moved the cursor up.
    """
    body = text.removesuffix("\n").replace("\r\n", "\n").removesuffix("\r")
    if "\x1b" in body:
        body = _COLOUR.sub("", body)
        if _VERTICAL.search(body):
            return _play(body)
    if "\x1b" not in body and "\r" not in body and "\b" not in body:
        return [Row(number, line) for number, line in enumerate(_INVISIBLE.sub("", body).split("\n"))]
    return [Row(number, _fold(line)) for number, line in enumerate(body.split("\n"))]


def _fold(line: str) -> str:
    """One line of the text as one of the screen."""
    if "\x1b" in line or "\b" in line:
        return _play(line)[0].text
    shown = ""
    for part in reversed(line.split("\r")):  # what was written last covers what lies under it
        part = clean(part)
        shown += part[len(shown) :]
    return shown


def _play(text: str) -> list[Row]:
    rows = [""]
    first = [0]  # the line that began each row
    row = column = position = line = 0

    def write(piece: str) -> None:
        nonlocal column
        piece = piece[: MAX_COLUMN - column]
        if piece:
            old = rows[row].ljust(column)
            rows[row] = old[:column] + piece + old[column + len(piece) :]
            column += len(piece)

    for match in _CONTROL.finditer(text):
        write(clean(text[position : match.start()]))
        position = match.end()
        move, final = match.group("move"), match.group("final")
        if move == "\n":
            row, column, line = row + 1, 0, line + 1
            if row == len(rows):
                rows.append("")
                first.append(line)
        elif move == "\r":
            column = 0
        elif move == "\b":
            column = max(0, column - 1)
        elif final:
            count = _count(match.group("args"))
            if final == "K":
                rows[row] = _erase(rows[row], column, match.group("args"))
            elif final == "A":
                row = max(0, row - count)
            elif final == "B":
                row = min(len(rows) - 1, row + count)
            elif final == "C":
                column = min(MAX_COLUMN, column + count)
            elif final == "D":
                column = max(0, column - count)
            elif final == "G":
                column = min(MAX_COLUMN, max(0, count - 1))
    write(clean(text[position:]))
    return [Row(number, row_text) for number, row_text in zip(first, rows, strict=True)]


def _count(arguments: str) -> int:
    first = arguments.split(";")[0]
    return max(1, int(first)) if first.isdigit() and len(first) < 7 else 1


def _erase(line: str, column: int, arguments: str) -> str:
    if arguments == "1":
        return " " * min(column, len(line)) + line[column:]
    return "" if arguments == "2" else line[:column]
