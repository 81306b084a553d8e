"""A person edits the Markdown of a session: their words stay, in place, whatever the lab writes afterwards."""

import random
import threading
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions import edits, pagefile
from sessions.entry import Entry
from sessions.page import Page, render

TALK = "conversation-1"
AT = "2026-11-21T14:00:00.000Z"


@pytest.fixture
def session(lab: Any) -> str:
    """A session with an objective, a result with a table, and an event."""
    lab.notebook.write(conversation=TALK, section="Objective", text="Find a better rate.\n\nIn five minutes a run.")
    lab.notebook.event(TALK, "run-0001 succeeded: val_bpb 1.21")
    entry = lab.notebook.write(
        conversation=TALK, section="Results", text="| run | loss |\n|---|---|\n| a | 1 |\n\nAs expected."
    )
    return str(entry.session)


def amendments(lab: Any, session: str) -> list[Entry]:
    return [entry for entry in lab.notebook.entries(session) if entry.kind == "amendment"]


def under(page: str, section: str) -> str:
    """The part of a page under one section."""
    return page.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]


def test_words_added_to_a_section_stay_there_marked_as_the_persons(lab: Any, session: str) -> None:
    lab.edit(session, lambda page: page.replace("As expected.\n", "As expected.\n\nI doubt it.\n- ask Ada\n"))
    lab.notebook.write(conversation=TALK, section="Results", text="More numbers.")
    results = under(lab.notebook.read(session), "Results")
    assert results.index("As expected.") < results.index("*Added by hand, ") < results.index("I doubt it.\n- ask Ada\n")
    assert results.index("- ask Ada") < results.index("More numbers.")
    (amendment,) = amendments(lab, session)
    assert (amendment.author, amendment.section, amendment.text) == ("user", "Results", "I doubt it.\n- ask Ada")
    assert "+I doubt it." in amendment.data["diff"]
    assert {"session": session, "entry": amendment.id} in lab.told()


def test_an_empty_section_is_filled_by_hand(lab: Any, session: str) -> None:
    lab.edit(session, lambda page: page.replace("## Analysis\n\n*Nothing yet.*", "## Analysis\n\nOne seed is no seed."))
    analysis = under(lab.notebook.read(session), "Analysis")
    assert "One seed is no seed." in analysis and "Nothing yet" not in analysis


def test_a_changed_note_shows_the_newest_words_and_the_journal_keeps_both(lab: Any, session: str) -> None:
    lab.edit(session, lambda page: page.replace("Find a better rate.\n\nIn", "Find a much better rate.\n\nIn"))
    page = lab.notebook.read(session)
    assert "Find a much better rate.\n\nIn five minutes a run." in page and "Find a better rate." not in under(
        page, "Objective"
    )
    assert "· changed by hand " in page and page.startswith("# Find a much better rate.\n")
    (amendment,) = amendments(lab, session)
    (change,) = amendment.data["changes"]
    assert change["before"] == "Find a better rate.\n\nIn five minutes a run."
    assert change["text"] == "Find a much better rate.\n\nIn five minutes a run."


def test_what_a_person_changed_or_struck_out_is_what_the_notebook_says(lab: Any) -> None:
    first = lab.notebook.write(conversation=TALK, section="Next steps", text="Repeat with lr 0.05.")
    second = lab.notebook.write(conversation=TALK, section="Next steps", text="Repeat with lr 0.1.")
    lab.told()
    lab.edit(first.session, lambda page: page.replace("lr 0.1.", "lr 0.2."))
    assert lab.notebook.absorb_edits() == 1
    assert (
        lab.notebook.words(second.id) == "Repeat with lr 0.2." and lab.notebook.latest().text == "Repeat with lr 0.2."
    )
    lab.edit(first.session, lambda page: page.replace("Repeat with lr 0.2.\n", ""))
    assert lab.notebook.absorb_edits() == 1
    assert lab.notebook.words(second.id) == "" and lab.notebook.latest().text == "Repeat with lr 0.05."
    told = [message["entry"] for message in lab.told()]
    entries = {entry.id: entry for entry in lab.notebook.entries(first.session)}
    assert [entries[name].amends for name in told] == [(second.id,), (second.id,)]


def test_a_row_added_to_a_table_belongs_to_the_table(lab: Any, session: str) -> None:
    lab.edit(session, lambda page: page.replace("| a | 1 |\n", "| a | 1 |\n| b | 2 |\n"))
    assert "| a | 1 |\n| b | 2 |\n\nAs expected." in lab.notebook.read(session)


def test_a_note_taken_out_leaves_a_mark_and_stays_in_the_journal(lab: Any, session: str) -> None:
    lab.edit(session, lambda page: page.replace("Find a better rate.\n\nIn five minutes a run.\n", ""))
    objective = under(lab.notebook.read(session), "Objective")
    assert "until it was removed by hand" in objective and "five minutes" not in objective
    assert any(entry.text.startswith("Find a better rate.") for entry in lab.notebook.entries(session))


def test_a_person_may_take_their_own_words_out_again(lab: Any, session: str) -> None:
    before = lab.notebook.read(session)
    lab.edit(session, lambda page: page.replace("As expected.\n", "As expected.\n\nI doubt it.\n"))
    lab.notebook.read(session)
    lab.edit(session, lambda page: page.replace("I doubt it.\n", ""))
    after = lab.notebook.read(session)
    assert after.split("\n---\n")[0] == before.split("\n---\n")[0]
    assert len(amendments(lab, session)) == 2


def test_a_title_changed_by_hand_is_the_title(lab: Any, session: str) -> None:
    lab.edit(session, lambda page: page.replace("# Find a better rate.", "# The rate hunt", 1))
    assert lab.notebook.read(session).startswith("# The rate hunt\n")
    assert lab.notebook.get(session).title == "The rate hunt"
    assert "Find a better rate." in lab.notebook.read(session)


def test_a_section_of_ones_own_stays_below_the_notes(lab: Any, session: str) -> None:
    lab.edit(session, lambda page: page.replace("## Analysis", "## Thoughts\n\nA heading of mine.\n\n## Analysis", 1))
    lab.notebook.write(conversation=TALK, section="Results", text="More numbers.")
    page = lab.notebook.read(session)
    assert page.index("More numbers.") < page.index("## Thoughts\n\nA heading of mine.") < page.index("## Analysis")


def test_headings_and_records_of_the_page_are_put_back(lab: Any, session: str) -> None:
    lab.notebook.journal(TALK, "stop_run", {"run": "run-0001"}, "stopping")
    lab.edit(session, lambda page: page.replace("## Method\n", "").replace("| stopping |", "| never happened |"))
    page = lab.notebook.read(session)
    assert "## Method\n" in page and "| stopping |" in page
    assert "never happened" in under(page, "Edited by hand")


def test_text_at_the_very_end_and_the_very_beginning_is_kept(lab: Any, session: str) -> None:
    lab.edit(session, lambda page: f"first line\n{page}last line, no newline")
    page = lab.notebook.read(session)
    assert "first line\n" in page and "last line, no newline\n" in page
    assert lab.notebook.absorb_edits() == 0


def test_other_line_ends_trailing_newlines_and_blank_lines_are_no_edits(lab: Any, session: str) -> None:
    page = lab.page(session)
    page.write_bytes(b"\xef\xbb\xbf" + page.read_bytes().replace(b"\n", b"\r\n"))
    lab.edit(session, lambda text: text.replace("## Method\n", "\n\n## Method\n\n") + "\n\n")
    assert lab.notebook.absorb_edits() == 0
    assert amendments(lab, session) == []


def test_bytes_that_are_no_text_stay_visible(lab: Any, session: str) -> None:
    page = lab.page(session)
    page.write_bytes(page.read_bytes().replace(b"As expected.", b"As expected, caf\xe9."))
    assert r"As expected, caf\xe9." in lab.notebook.read(session)


def test_a_deleted_or_emptied_page_is_written_again(lab: Any, session: str) -> None:
    before = lab.notebook.read(session)
    lab.page(session).unlink()
    assert lab.notebook.read(session).split("\n---\n")[0] == before.split("\n---\n")[0]
    lab.page(session).write_text("")
    assert "Find a better rate." in lab.notebook.read(session)
    assert [entry.data["changes"][0]["what"] for entry in amendments(lab, session)] == ["missing", "missing"]


def test_a_renamed_page_is_followed(lab: Any, session: str) -> None:
    page = lab.page(session)
    page.rename(page.with_name(f"{session}-my-name.md"))
    lab.notebook.write(conversation=TALK, section="Analysis", text="after the renaming")
    assert lab.page(session).name == f"{session}-my-name.md"
    assert "after the renaming" in lab.page(session).read_text()
    assert len(list(lab.workspace.sessions_dir.glob("*.md"))) == 1


def test_an_editor_that_saves_an_older_page_removes_nothing(lab: Any, session: str) -> None:
    opened_in_editor = lab.page(session).read_text()
    for n in range(3):
        lab.notebook.write(conversation=TALK, section="Analysis", text=f"written meanwhile {n}")
    lab.page(session).write_text(opened_in_editor.replace("As expected.", "As I expected."))
    page = lab.notebook.read(session)
    assert "As I expected." in page and all(f"written meanwhile {n}" in page for n in range(3))
    assert "removed by hand" not in page


def test_edits_made_while_the_lab_was_away_are_taken_in_at_the_start(lab: Any, session: str) -> None:
    lab.edit(session, lambda page: page.replace("As expected.\n", "As expected.\n\nI doubt it.\n"))
    notebook = lab.again()
    assert notebook.absorb_edits() == 1
    assert "I doubt it." in notebook.read(session) and notebook.absorb_edits() == 0


def test_without_its_memory_a_page_is_compared_with_its_entries(lab: Any, session: str) -> None:
    lab.edit(session, lambda page: page.replace("As expected.\n", "As expected.\n\nI doubt it.\n"))
    (lab.workspace.journal_dir / f"{session}.rendered.json").write_text("{broken")
    page = lab.again().read(session)
    assert page.count("I doubt it.") == 1 and page.count("As expected.") == 1


def test_an_edit_made_between_the_last_look_and_the_writing_is_kept(
    lab: Any, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = pagefile.exchange
    for number, working in enumerate((True, False)):  # with and without an atomic exchange of two files

        def late(first: Any, second: Any, number: int = number, working: bool = working) -> bool:
            if f"race {number}" not in second.read_text():
                other = second.with_name("editor.tmp")  # as editors save: a new file, renamed over the old one
                other.write_text(second.read_text().replace("As expected.\n", f"As expected.\n\nrace {number}\n"))
                other.replace(second)
            return swap(first, second) if working else False

        monkeypatch.setattr(pagefile, "exchange", late)
        lab.notebook.write(conversation=TALK, section="Analysis", text=f"note {number}")
        monkeypatch.setattr(pagefile, "exchange", swap)
        page = lab.page(session).read_text()
        assert f"race {number}" in under(page, "Results") and f"note {number}" in page


def test_an_editor_that_still_holds_the_old_file_open_is_heard(lab: Any, session: str) -> None:
    with lab.page(session).open("a") as old:
        lab.notebook.write(conversation=TALK, section="Analysis", text="replaces the file")
        old.write("written into the old file\n")
    lab.again()
    lab.notebook.write(conversation=TALK, section="Analysis", text="next")
    page = lab.page(session).read_text()
    assert page.count("written into the old file") == 1
    lab.notebook.write(conversation=TALK, section="Analysis", text="next but one")
    assert lab.page(session).read_text().count("written into the old file") == 1


@pytest.mark.parametrize("killed_at", ["index.sync", "_remember", "_swap", "sync_folder"])
def test_a_kill_while_an_edit_is_taken_in_loses_and_doubles_nothing(
    lab: Any, session: str, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    lab.edit(session, lambda page: page.replace("As expected.\n", "As expected.\n\nI doubt it.\n"))
    with monkeypatch.context() as patch:
        if killed_at == "index.sync":
            patch.setattr(lab.notebook._index, "sync", killed)
        elif killed_at == "sync_folder":
            patch.setattr(pagefile.durable, "sync_folder", killed)
        else:
            patch.setattr(pagefile.PageFile, killed_at, killed)
        with pytest.raises(KeyboardInterrupt):
            lab.notebook.absorb_edits()
    lab.again()
    lab.edit(session, lambda page: page.replace("I doubt it.\n", "I doubt it.\n\nStill.\n"))
    lab.notebook.write(conversation=TALK, section="Results", text="More numbers.")
    page = lab.notebook.read(session)
    assert [page.count(words) for words in ("I doubt it.", "Still.", "More numbers.", "As expected.")] == [1, 1, 1, 1]
    assert "removed by hand" not in page
    assert lab.notebook.verify() == []


# random edits, without files: every line a person added is still there after any number of further notes

LINES = st.sampled_from(
    [
        "mine",
        "- mine",
        "## Mine",
        "# Mine",
        "```",
        "| a | b |",
        "> q",
        "    code",
        "<!-- c",
        "",
        "",
        "*Nothing yet.*",
        "---",
        "| a | 1 |",
    ]
) | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "replace", "delete", "move", "note", "event"]),
        st.floats(0, 1),
        st.integers(1, 6),
        st.lists(LINES, min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


class Pages:
    """Entries in memory, rendered and edited as the notebook does it, without its files."""

    def __init__(self) -> None:
        self.entries = [Entry("2026-11-21-01-0001", AT, "open", "lab", data={"title": "A title"}).sealed("0" * 64)]
        for section, text in (
            ("Objective", "Find\na\nrate."),
            ("Results", "# N\n\n| a | 1 |\n\n```\ncode"),
            ("Results", "- x\n- y"),
        ):
            self.add("note", section=section, text=text)
        self.add("event", section="Results", text="run-0001 ended")
        self.add("journal", tool="stop_run", arguments={"run": "run-0001"}, outcome="ok")

    def add(self, kind: Any, **fields: Any) -> None:
        entry = Entry(self.next_id(), AT, kind, "lab", **fields)
        self.entries.append(entry.sealed(self.entries[-1].hash))

    def next_id(self) -> str:
        return f"2026-11-21-01-{len(self.entries) + 1:04d}"

    def page(self) -> Page:
        return render(self.entries)

    def absorb(self, lines: list[str]) -> None:
        base = self.page()
        draft = edits.amendment(self.entries, base, "\n".join(lines) + "\n", self.next_id())
        if draft is not None:
            self.entries.append(draft.sealed(self.entries[-1].hash))


def edited(lines: list[str], operation: str, where: float, count: int, new: list[str]) -> list[str]:
    at = int(where * len(lines))
    if operation == "insert":
        return lines[:at] + new + lines[at:]
    if operation == "replace":
        return lines[:at] + new + lines[at + count :]
    if operation == "delete":
        return lines[:at] + lines[at + count :]
    rest = lines[:at] + lines[at + count :]
    target = (at * 7 + count) % (len(rest) + 1)
    return rest[:target] + lines[at : at + count] + rest[target:]


def words(page: Page) -> Counter[str]:
    return Counter(line for line, owner in zip(page.lines, page.owners, strict=True) if owner.role == "body")


def shown(line: str, page: Page) -> bool:
    title = line.startswith("# ") and line[1:].strip() == page.lines[0][1:].strip()
    return line in page.lines or title


@settings(max_examples=120, deadline=None)
@given(OPERATIONS)
def test_no_line_a_person_wrote_is_ever_lost(operations: list[tuple[str, float, int, list[str]]]) -> None:
    pages = Pages()
    for operation, where, count, new in operations:
        if operation in ("note", "event"):
            pages.add(operation, section="Results", text=f"about {count}")
            continue
        before = pages.page().lines
        after = edited(before, operation, where, count, new)
        pages.absorb(after)
        page = pages.page()
        assert edits.unplaced(page, Page(before, []), after) == []
        for line in after:
            if line.strip() and line not in before:
                assert shown(line, page), line
    kept = pages.page()
    for section in ("Objective", "Results", "Next steps"):
        pages.add("note", section=section, text="a later note")
        pages.add("event", section=section, text="run-0009 ended")
    assert words(kept) <= words(pages.page())


@settings(max_examples=60, deadline=None)
@given(OPERATIONS)
def test_taking_in_an_edit_leaves_nothing_more_to_take_in(operations: list[tuple[str, float, int, list[str]]]) -> None:
    pages = Pages()
    for operation, where, count, new in operations:
        if operation not in ("note", "event"):
            pages.absorb(edited(pages.page().lines, operation, where, count, new))
            entries = len(pages.entries)
            pages.absorb(pages.page().lines)
            assert len(pages.entries) == entries


def test_the_pages_last_line_moved_into_the_words_is_taken_in_once() -> None:
    pages = Pages()
    pages.absorb(["mine", *pages.page().lines])
    lines = pages.page().lines
    pages.absorb([*lines[:-4], lines[-1], *lines[-4:-1]])
    entries = len(pages.entries)
    pages.absorb(pages.page().lines)
    assert len(pages.entries) == entries


def test_random_edits_of_the_file_between_and_during_notes(lab: Any, session: str) -> None:
    """One person saves the page again and again while notes are written."""
    mine: list[str] = []
    stop = threading.Event()

    def person() -> None:
        chance = random.Random(7)
        while not stop.is_set() and len(mine) < 25:
            page = lab.page(session)
            lines = page.read_text(encoding="utf-8").split("\n")
            line = f"mine {len(mine)}"
            lines.insert(chance.randrange(len(lines)), line)
            other = page.with_name(f".editor-{len(mine)}")
            other.write_text("\n".join(lines), encoding="utf-8")
            other.replace(page)
            mine.append(line)
            time.sleep(0.03)

    thread = threading.Thread(target=person)
    thread.start()
    for n in range(25):
        lab.notebook.write(conversation=TALK, section="Results", text=f"note {n}")
    stop.set()
    thread.join()
    page = lab.notebook.read(session)
    whole = lab.journal(session).read_text(encoding="utf-8")
    assert all(f"note {n}" in page for n in range(25))
    assert [line for line in mine if line not in page and line not in whole] == []
    assert lab.notebook.verify() == []
