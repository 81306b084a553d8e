"""A results.tsv that somebody else's loop has written: autoresearch's five columns, or those of one of its forks.

Nothing is guessed at: a row that cannot be read is set aside with its line and column, and what the file's writer
must be asked about is refused with the places that made it unclear.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from workspace.errors import LabError, NotFound, Refused

Status = Literal["keep", "discard", "crash", "skip"]
LARGEST_BYTES = 50_000_000
AUTORESEARCH = ("commit", "val_bpb", "memory_gb", "status", "description")
OURS = ("experiment", "verdict", "effect", "noise_sd", "n_candidate")  # columns of this lab's own file
UNIFIED = ("exp", "description", "val_bpb", "peak_mem_gb", "tok_sec", "mfu", "steps", "status", "notes")
# what the columns are called, here and in the forks; spelling and case do not matter
NAMES: dict[str, tuple[str, ...]] = {
    "commit": ("commit", "sha", "hash", "commit_sha", "commit_hash", "git_commit", "revision"),
    "score": ("val_bpb", "bpb", "validation_bpb", "valid_bpb"),
    "memory": ("memory_gb", "peak_mem_gb", "peak_memory_gb", "mem_gb", "vram_gb", "peak_vram_gb", "peak_vram_mb"),
    "status": ("status", "outcome", "result", "decision", "verdict"),
    "description": ("description", "desc", "change", "idea", "hypothesis", "experiment", "notes"),
}
WORDS: dict[Status, tuple[str, ...]] = {
    "keep": ("keep", "keeps", "kept", "accept", "accepted", "improve", "improved", "improvement", "advance", "advanced",
             "baseline", "best", "merged", "win"),
    "discard": ("discard", "discarded", "reject", "rejected", "revert", "reverted", "drop", "dropped", "worse",
                "neutral", "inconclusive", "no", "none", "loss"),
    "crash": ("crash", "crashed", "fail", "failed", "failure", "error", "oom", "nan", "diverged", "timeout", "timed",
              "killed", "invalid", "checks"),
    "skip": ("skip", "skipped", "pending", "aborted", "cancelled", "canceled"),
}  # fmt: skip
NO_COMMIT = ("unknown", "uncommitted", "pending", "tbd")  # and what stands for nothing at all
NOTHING = ("", "-", "--", "none", "null", "n/a", "na", "nan", "inf", "-inf", "+inf", "?")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
POSITIVE = ("bpb", "loss", "perplexity")  # a score of zero in one of these stands for no score


class Problem(BaseModel):
    """Something in the file that could not be taken as it stands."""

    model_config = ConfigDict(frozen=True)

    line: int
    column: str | None = Field(None, description="number and name, e.g. 2 (val_bpb)")
    text: str

    def __str__(self) -> str:
        return f"line {self.line}{f', column {self.column}' if self.column else ''}: {self.text}"


class Row(BaseModel):
    """One experiment of the file. `session`: 0, 1, ... where the file holds several."""

    model_config = ConfigDict(frozen=True)

    line: int
    session: int
    commit: str
    score: float | None
    memory_gb: float | None
    status: Status
    description: str
    baseline: bool = Field(description="the first score of its session: what the others start from")


class Imported(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    metric: str
    columns: dict[str, str] = Field(description="what was taken from which column")
    foreign: list[str] = Field(description="columns that were not used")
    rows: list[Row]
    problems: list[Problem] = Field(description="rows set aside")
    notes: list[str] = Field(description="what was made of oddities")


def read(file: Path, metric: str | None = None) -> Imported:
    """Read a results.tsv (or .csv); `metric` names the score's column where it is not one of bits per byte.

    Raises `LabError` when nothing can be made of it, with line and column.
    """
    try:
        if file.is_file() and file.stat().st_size > LARGEST_BYTES:
            raise Refused(f"{file.name} is larger than {LARGEST_BYTES // 10**6} MB", valid="a table of experiments")
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {file.name!r}", fix="give the path of a results.tsv") from error
    except OSError as error:
        raise LabError(f"{file.name!r} cannot be read ({error.strerror})", valid="a results.tsv") from error
    return _Reader(file.name, metric).read(data)


class _Reader:
    def __init__(self, name: str, metric: str | None) -> None:
        self.name, self.metric = name, metric
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.header: list[str] = []
        self.where: dict[str, int] = {}  # what -> number of its column, from 0

    def read(self, data: bytes) -> Imported:
        text = self._decode(data)
        lines = self._cells(text)
        if not lines:
            raise Refused(f"{self.name} is empty", valid="a header or five columns: " + " ".join(AUTORESEARCH))
        self._head(lines)
        torn = lines[-1] if text and text[-1] not in "\r\n" else None
        rows: list[Row] = []
        session = 0
        for number, cells in lines:
            if _normal(cells) == _normal(self.header):
                session += bool(rows)
                if rows:
                    self.notes.append(f"line {number} repeats the header: what follows is taken as another session")
                continue
            row = self._row(number, cells, session, last=torn is not None and number == torn[0])
            if row is None:
                continue
            first = all(earlier.session != row.session or earlier.score is None for earlier in rows)
            if not first and row.status == "keep" and re.match(r"\W*baseline\b", row.description, re.IGNORECASE):
                session, first = session + 1, True
                self.notes.append(f"line {number} is another baseline: what follows is taken as another session")
            baseline = first and row.score is not None
            if baseline and not self._called_baseline(row, cells):
                self.notes.append(
                    f"line {number} is taken as the baseline, what the others start from: it has the first score, "
                    "though nothing in it says baseline"
                )
            rows.append(row.model_copy(update={"session": session, "baseline": baseline}))
        if not rows:
            reason = f" ({self.problems[0]})" if self.problems else ""
            raise Refused(f"{self.name} holds no row that can be read{reason}", valid=" ".join(AUTORESEARCH))
        return Imported(
            name=self.name, metric=self._title("score"), rows=rows, problems=self.problems, notes=self.notes,
            columns={what: self._title(what) for what in self.where},
            foreign=[title for i, title in enumerate(self.header) if i not in self.where.values()],
        )  # fmt: skip

    # -- lines and columns --------------------------------------------------------------------------------------------

    def _decode(self, data: bytes) -> str:
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        text = data.decode(encoding, "replace")
        if "\ufffd" in text and "\ufffd".encode() not in data:
            line = text[: text.index("\ufffd")].count("\n") + 1
            self.notes.append(f"line {line} holds bytes that are not {encoding[:6].upper().rstrip('-')}: replaced")
        return text.replace("\0", "")

    def _cells(self, text: str) -> list[tuple[int, list[str]]]:
        """(line number, cells) of the lines that are neither empty nor a comment."""
        lines = text.split("\n" if "\n" in text else "\r")
        first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
        if "\t" not in first and "," in first:
            found = self._comma_separated(text)
        else:
            found = [(i, [_unquoted(c) for c in line.rstrip("\r").split("\t")]) for i, line in enumerate(lines, 1)]
        return [(i, [c.strip() for c in cells]) for i, cells in found if _says_something(cells)]

    def _comma_separated(self, text: str) -> list[tuple[int, list[str]]]:
        """Rows of a .csv, each with the number of its last line. A quote that is never closed would swallow the rows
        behind it: refused."""
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        found: list[tuple[int, list[str]]] = []
        begins = 1
        try:
            for cells in reader:
                if (span := reader.line_num - begins + 1) > 1:
                    self.notes.append(f"lines {begins} to {reader.line_num} are one row: {span} lines within quotes")
                found.append((reader.line_num, cells))
                begins = reader.line_num + 1
        except csv.Error as error:
            raise Refused(
                f"{self.name} line {begins}: the row that begins here cannot be read ({error})",
                valid='quotes in pairs around a whole cell, a quote within it doubled: "said ""no"""',
                fix="mend the quotes of that line, or separate the columns by tabs",
            ) from error
        return found

    def _head(self, lines: Sequence[tuple[int, list[str]]]) -> None:
        """Find out which column is what, from the header or, without one, from the order autoresearch writes."""
        number, cells = lines[0]
        names = _normal(cells)
        if set(OURS) <= set(names):
            raise Refused(
                f"{self.name} is a results.tsv of this lab: its rows are means of several runs, each judged against "
                "controls of its own, and would be judged here as single runs against one another",
                valid="what another loop wrote, one run a row",
                fix="its verdicts are in the columns verdict, effect, low, high, p and sentence; lab-mcp report all "
                "writes about the experiments of this workspace",
            )
        scores = (_normal([self.metric])[0],) if self.metric else NAMES["score"]
        wanted = {**NAMES, "score": scores}
        has = {what: next((names.index(n) for n in choice if n in names), None) for what, choice in wanted.items()}
        if has["score"] is not None and has["status"] is not None:
            self.header = cells
            used: set[int] = set()
            for what in ("score", "status", "commit", "memory", "description"):
                place = has[what]
                if place is not None and place not in used:
                    self.where[what] = place
                    used.add(place)
            return
        if not any(_number(c) is not None or _status(c) for c in cells) or has["score"] is not None:
            missing = "status" if has["score"] is not None else self.metric or "val_bpb"
            raise Refused(
                f"{self.name} line {number}: no column is called {missing}",
                valid="columns here: " + ", ".join(cells)[:300],
                fix="rename it, or name the score's column with --metric" if missing != "status" else "rename it",
            )
        for order in (AUTORESEARCH, UNIFIED):
            known = {what: i for i, title in enumerate(order) for what in NAMES if title in NAMES[what]}
            if len(cells) >= len(order) and all(_fits(known, c, len(order)) for _, c in lines[:5]):
                extra = [f"column {i}" for i in range(len(order) + 1, len(cells) + 1)]
                self.header, self.where = [*order, *extra], known | {"description": order.index("description")}
                self.notes.append("there is no header: the columns are taken as " + " ".join(order))
                if self.metric:
                    raise Refused(f"{self.name} has no header, so no column is called {self.metric}", fix="add one")
                return
        raise Refused(
            f"{self.name} line {number}: there is no header, and the columns are not autoresearch's",
            valid="without a header: " + " ".join(AUTORESEARCH),
            fix="add a first line that names the columns, separated by tabs",
        )

    def _title(self, what: str) -> str:
        return self.header[self.where[what]]

    def _place(self, what: str) -> str:
        return f"{self.where[what] + 1} ({self._title(what)})"

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _row(self, line: int, cells: list[str], session: int, *, last: bool) -> Row | None:
        if last and len(cells) < len(self.header):
            self._set_aside(
                line, None, f"torn: the file ends inside it, after {len(cells)} of {len(self.header)} cells"
            )
            return None
        cells = self._fitted(line, cells)
        status = self._status(line, cells)
        if status is None:
            return None
        score = self._score(line, cells, status)
        if last:
            self.notes.append(f"line {line} has no line end: its last cell may be cut off")
        megabytes = self.where.get("memory") is not None and self._title("memory").lower().endswith("mb")
        memory = _number(self._cell(cells, "memory"))
        return Row(
            line=line, session=session, commit=_commit(self._cell(cells, "commit")), score=score, status=status,
            baseline=False,
            memory_gb=None if not memory else memory / 1024 if megabytes else memory,
            description=self._cell(cells, "description"),
        )  # fmt: skip

    def _called_baseline(self, row: Row, cells: list[str]) -> bool:
        return "baseline" in f"{row.description} {self._cell(cells, 'status')}".casefold()

    def _fitted(self, line: int, cells: list[str]) -> list[str]:
        """The cells of a line that has more than the header: a text at the end may hold the separator."""
        more, last = len(cells) - len(self.header), len(self.header) - 1
        if more > 0 and self.where.get("description") == last:
            self.notes.append(f"line {line} has {more} more cell{'s' * (more > 1)} than the header: read as its text")
            return [*cells[:last], " ".join(cells[last:])]
        return cells

    def _status(self, line: int, cells: list[str]) -> Status | None:
        text = self._cell(cells, "status")
        status = _status(text)
        if status is None:
            what = f"{text[:40]!r} is no status" if text else "there is no status"
            if len(cells) != len(self.header):
                what += f" ({len(cells)} cells, {len(self.header)} columns)"
            self._set_aside(line, "status", f"{what}; known are keep, discard, crash, skip and words like them")
        return status

    def _score(self, line: int, cells: list[str], status: Status) -> float | None:
        """The score of a row that has one; what is no number is a problem, unless the run gave none."""
        text = self._cell(cells, "score")
        if status in ("crash", "skip"):
            return None
        value = _number(text)
        metric = self._title("score").lower()
        if value is None:
            hint = "; a decimal comma?" if re.fullmatch(r"\d+,\d+", text) else ""
            what = f"a {status} without a score" if text.lower() in NOTHING else f"{text[:40]!r} is not a number{hint}"
            self._set_aside(line, "score", f"{what}; it is compared with nothing")
        elif value <= 0 and any(word in metric for word in POSITIVE):
            self._set_aside(line, "score", f"{text} is no {metric}; it is compared with nothing")
            return None
        return value

    def _cell(self, cells: list[str], what: str) -> str:
        place = self.where.get(what)
        return cells[place] if place is not None and place < len(cells) else ""

    def _set_aside(self, line: int, what: str | None, text: str) -> None:
        self.problems.append(Problem(line=line, column=self._place(what) if what else None, text=text))


def _normal(names: Sequence[str]) -> list[str]:
    return [re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_") for name in names]


def _says_something(cells: Sequence[str]) -> bool:
    return any(cell.strip() for cell in cells) and not (len(cells) == 1 and cells[0].startswith("#"))


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _number(text: str) -> float | None:
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) else None


def _commit(text: str) -> str:
    """Empty for what stands in place of a commit: rows that share it are no repeats of one."""
    lowered = text.casefold()
    return "" if lowered in NOTHING or lowered in NO_COMMIT or not lowered.strip("0") else text


def _status(text: str) -> Status | None:
    """What a status stands for, by its first word: `KEEP`, `discarded`, `crash (oom)`."""
    word = re.search(r"[a-z]+", text.casefold())
    return next((status for status, words in WORDS.items() if word and word.group() in words), None)


def _fits(place: dict[str, int], cells: Sequence[str], columns: int) -> bool:
    """Do the cells of a line without header look as this order of columns has them?"""
    if len(cells) < min(columns, max(place["score"], place["status"]) + 1):
        return False
    score = cells[place["score"]]
    return (_number(score) is not None or score.lower() in NOTHING) and _status(cells[place["status"]]) is not None
