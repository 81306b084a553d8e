"""The notebook as its callers see it."""

import itertools
import json
import re
import threading
from typing import Any

import pytest

from sessions.entry import SECTIONS, fingerprint
from workspace.errors import LabError, NotFound, Refused

TALK = "conversation-1"


def note(lab: Any, section: str = "Results", text: str = "loss fell", **more: Any) -> Any:
    return lab.notebook.write(**{"conversation": TALK, "section": section, "text": text, **more})


# a session and its page


def test_reading_makes_no_session(lab: Any) -> None:
    assert lab.notebook.session_for(TALK) is None
    assert lab.notebook.list() == []
    assert not list(lab.workspace.sessions_dir.glob("*.md"))


def test_the_page_appears_with_the_first_note_and_is_named_after_it(lab: Any) -> None:
    entry = note(lab, "Objective", "## Größere Lernrate: does it help a shallow model?")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-01", entry.session)
    assert lab.page(entry.session).name == f"{entry.session}-grossere-lernrate-does-it-help-a-shallow.md"
    page = lab.notebook.read(entry.session)
    assert page.startswith("# Größere Lernrate: does it help a shallow model?\n")
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == [*SECTIONS]


def test_a_journalled_call_opens_a_session_too(lab: Any) -> None:
    entry = lab.notebook.journal(TALK, "start_training", {"name": "baseline"}, "run-0001 queued")
    page = lab.notebook.read(entry.session)
    assert "| start_training | `name=baseline` | [run-0001](../../runs/run-0001/) queued |" in page


def test_one_conversation_one_session_and_two_conversations_two(lab: Any) -> None:
    first, again = note(lab), note(lab, text="and fell again")
    other = note(lab, conversation="conversation-2")
    assert first.session == again.session
    assert (first.session[-2:], other.session[-2:]) == ("01", "02")
    assert "fell again" not in lab.notebook.read(other.session)


def test_after_closing_the_conversation_goes_on_in_a_new_session(lab: Any) -> None:
    first = note(lab)
    assert not lab.notebook.close(first.session).open
    assert lab.notebook.session_for(TALK) is None
    assert note(lab).session != first.session


def test_session_numbers_are_never_used_twice(lab: Any) -> None:
    first = note(lab)
    for path in (*lab.workspace.sessions_dir.glob("*.md"), *lab.workspace.journal_dir.iterdir()):
        path.unlink()
    assert lab.again().write(conversation="other", section="Results", text="x").session[-2:] == "02"
    assert first.session[-2:] == "01"


def test_new_gives_the_conversation_a_fresh_session(lab: Any) -> None:
    note(lab)
    fresh = lab.notebook.new("Second thoughts", TALK)
    assert note(lab).session == fresh.id
    assert lab.notebook.read(fresh.id).startswith("# Second thoughts\n")
    with pytest.raises(Refused):
        lab.notebook.new("  ")


# notes


@pytest.mark.parametrize("name", ["next steps", "NEXT STEPS", "next_steps", " Next  Steps "])
def test_section_names_are_taken_as_people_write_them(lab: Any, name: str) -> None:
    assert note(lab, name).section == "Next steps"


def test_an_unknown_section_is_refused_with_the_known_ones(lab: Any) -> None:
    with pytest.raises(LabError, match=r"Objective, Hypothesis, .* Next steps.*'Results'"):
        note(lab, "Result")
    assert lab.notebook.list() == []  # a refused call changes nothing


@pytest.mark.parametrize("text", ["", "  \n\t ", "\x00\x07"])
def test_an_empty_note_is_refused(lab: Any, text: str) -> None:
    with pytest.raises(LabError, match="empty"):
        note(lab, text=text)


def test_a_note_too_long_is_refused_with_the_bound(lab: Any) -> None:
    with pytest.raises(LabError, match="at most 20000"):
        note(lab, text="x" * 20_001)


def test_unknown_sessions_links_and_authors_are_refused(lab: Any) -> None:
    note(lab)
    with pytest.raises(NotFound):
        note(lab, session="2020-01-01-01")
    with pytest.raises(NotFound):
        note(lab, session="../../etc/passwd")
    with pytest.raises(LabError, match="run-0007"):
        note(lab, links={"runs": ["../secrets"]})
    with pytest.raises(LabError, match="papers"):
        note(lab, links={"paper": ["x"]})
    with pytest.raises(LabError, match="assistant"):
        note(lab, author="nobody")


def test_a_note_links_to_runs_experiments_and_papers(lab: Any) -> None:
    entry = note(lab, text="see run-0002", links={"runs": "run-0001", "papers": ["2502.16982", "papers/a b.pdf"]})
    assert entry.links.runs == ("run-0001", "run-0002")
    page = lab.notebook.read(entry.session)
    for link in (
        "[run-0001](../../runs/run-0001/)",
        "[run-0002](../../runs/run-0002/)",
        "[arXiv:2502.16982](https://arxiv.org/abs/2502.16982)",
        "[a b.pdf](../../papers/a%20b.pdf)",
    ):
        assert link in page


def test_secrets_reach_neither_page_nor_journal(lab: Any) -> None:
    secret = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8x"
    entry = note(lab, text=f"export HF_TOKEN=hf_{secret}")
    lab.notebook.journal(
        TALK,
        "start_training",
        {"env": {"WANDB_API_KEY": "0123456789"}, "args": ["--token", secret], "url": f"https://me:{secret}@host/x"},
        {"log": f"Authorization: Bearer {secret}"},
    )
    kept = lab.journal(entry.session).read_text() + lab.notebook.read(entry.session)
    assert "0123456789" not in kept
    assert f"hf_{secret}" not in kept and f"me:{secret}" not in kept and f"Bearer {secret}" not in kept


def test_long_and_odd_arguments_are_cut_not_refused(lab: Any) -> None:
    odd = {
        "text": "y" * 5000,
        "list": list(range(500)),
        "nan": float("nan"),
        "deep": [[[[[[[[1]]]]]]]],
        "bad": "\ud800\x1b[31m",
    }
    entry = lab.notebook.journal(TALK, "start_training", odd, "x" * 5000)
    assert len(json.dumps(entry.arguments)) < 2000 and len(entry.outcome or "") < 700
    assert "4700 more characters" in entry.arguments["text"]
    assert "\x1b" not in lab.notebook.read(entry.session)


# events


def test_an_event_goes_to_the_session_that_started_the_run(lab: Any) -> None:
    mine = lab.notebook.journal(TALK, "start_training", {}, "run-0001 queued")
    lab.notebook.journal("conversation-2", "start_training", {}, "run-0002 queued")
    note(lab, conversation="conversation-2", text="compare with run-0001")
    event = lab.notebook.event(None, "run-0001 succeeded: val_bpb 1.21", key="ended run-0001")
    assert event.session == mine.session
    assert "[run-0001](../../runs/run-0001/) succeeded" in lab.notebook.read(mine.session)


def test_work_nobody_asked_for_has_the_days_own_session(lab: Any) -> None:
    first, second = (lab.notebook.event(None, f"run-000{n} ended") for n in (1, 2))
    assert first.session == second.session
    assert lab.notebook.get(first.session).title.startswith("Unattended work of ")


def test_closing_writes_the_summary_from_the_facts_of_events(lab: Any) -> None:
    lab.notebook.journal(TALK, "start_training", {}, "run-0001 queued")
    for run, value in (("run-0001", 1.25), ("run-0002", 1.2)):
        facts = {"run": run, "name": "a|b", "state": "succeeded", "metric": "val_bpb", "value": value, "elapsed_s": 300}
        lab.notebook.event(TALK, f"{run} ended", facts=facts)
    facts = {"experiment": "exp-0001", "change": "lr 0.03", "verdict": "keep", "metric": "val_bpb", "value": 1.2}
    entry = lab.notebook.event(TALK, "exp-0001: keep", facts=facts)
    assert "## Summary" not in lab.notebook.read(entry.session)
    lab.notebook.close(entry.session)
    page = lab.notebook.read(entry.session)
    assert "| [run-0001](../../runs/run-0001/) | a\\|b | succeeded | val_bpb 1.25 | 5 min |" in page
    assert "Best result: **val_bpb 1.2**, [run-0002](../../runs/run-0002/)." in page
    assert "| [exp-0001](../../experiments/exp-0001/) | lr 0.03 | **keep** | val_bpb 1.2 |" in page
    assert page == lab.notebook.read(entry.session)
    lab.notebook.close(entry.session)
    assert len([e for e in lab.notebook.entries(entry.session) if e.kind == "close"]) == 1


# the chain, idempotence, the outbox


def test_every_entry_carries_the_hash_of_the_one_before(lab: Any) -> None:
    session = [note(lab, text=f"note {n}").session for n in range(3)][-1]
    records = [json.loads(line) for line in lab.journal(session).read_text().splitlines()]
    assert [r["kind"] for r in records] == ["open", "note", "note", "note"]
    for before, after in itertools.pairwise(records):
        assert after["previous"] == before["hash"] == fingerprint(before)
    assert lab.notebook.verify() == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda lines: [*lines[:1], lines[1].replace("note 0", "note 9"), *lines[2:]], "was changed after"),
        (lambda lines: [lines[0], *lines[2:]], "does not follow"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "does not follow"),
        (lambda lines: lines[:3], "gone from the journal"),
        (lambda lines: [lines[0], "{broken", *lines[2:]], "cannot be read"),
        (lambda lines: [], "missing or empty"),
    ],
)
def test_verify_finds_what_was_done_to_a_journal(lab: Any, damage: Any, words: str) -> None:
    session = [note(lab, text=f"note {n}").session for n in range(3)][-1]
    journal = lab.journal(session)
    journal.write_text("".join(f"{line}\n" for line in damage(journal.read_text().splitlines())))
    assert any(words in problem for problem in lab.again().verify())


def test_a_damaged_journal_still_takes_notes(lab: Any) -> None:
    session = note(lab, text="first words").session
    journal = lab.journal(session)
    journal.write_text(journal.read_text().replace("first words", "other words") + "garbage\n" + '{"torn": ')
    lab.again()
    note(lab, text="later words")
    assert "later words" in lab.notebook.read(session)
    assert len(lab.notebook.verify()) >= 2


def test_the_same_key_adds_nothing_twice(lab: Any) -> None:
    def send() -> list[str]:
        return [
            note(lab, key="a").id,
            lab.notebook.journal(TALK, "stop_run", {}, "ok", key="b").id,
            lab.notebook.event(None, "run-0001 ended", key="c").id,
        ]

    ids, told = send(), len(lab.told())
    assert send() == ids
    lab.again()
    assert send() == ids
    assert (told, lab.told()) == (2, [])


def test_every_note_is_told_of_once(lab: Any) -> None:
    entries = [note(lab), lab.notebook.event(None, "run-0001 ended")]
    lab.notebook.journal(TALK, "stop_run", {}, "ok")
    assert lab.told() == [{"session": e.session, "entry": e.id} for e in entries]
    assert lab.notebook.entry(entries[0].id) == entries[0]


def test_an_entry_that_reached_only_the_journal_is_told_of_after_a_start(lab: Any, monkeypatch: Any) -> None:
    session = note(lab, text="first").session
    lab.told()
    monkeypatch.setattr(lab.notebook._index, "sync", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        note(lab, text="second", key="k")
    notebook = lab.again()
    assert notebook.recover() == 1
    assert [m["entry"] for m in lab.told()] == [f"{session}-0003"]
    assert "second" in lab.page(session).read_text()
    assert note(lab, text="second", key="k").id == f"{session}-0003"
    assert notebook.recover() == 0


def test_the_index_is_rebuilt_from_the_journals(lab: Any) -> None:
    session = note(lab, "Next steps", "try 0.04", key="k").session
    lab.database.close()
    for path in lab.workspace.state_dir.glob("lab.db*"):
        path.unlink()
    notebook = lab.again()
    assert notebook.session_for(TALK).id == session
    assert notebook.latest("Next steps").text == "try 0.04"
    assert note(lab, "Next steps", "try 0.04", key="k").id == f"{session}-0002"


def test_a_torn_last_line_is_cut_off(lab: Any) -> None:
    session = note(lab).session
    with lab.journal(session).open("a") as file:
        file.write('{"id":"half')
    lab.again()
    assert note(lab, text="more").id == f"{session}-0003"
    assert lab.notebook.verify() == []


def test_many_threads_write_one_session_and_their_own(lab: Any) -> None:
    failures: list[Exception] = []

    def work(worker: int) -> None:
        try:
            for n in range(6):
                note(lab, text=f"shared {worker}.{n}", key=f"s{worker}.{n}")
                note(lab, text=f"own {worker}.{n}", conversation=f"own-{worker}")
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert lab.notebook.verify() == []
    assert len(lab.notebook.list(limit=50)) == 5
    shared = lab.notebook.read(lab.notebook.session_for(TALK).id)
    assert all(f"shared {worker}.{n}\n" in shared for worker in range(4) for n in range(6))
    assert "own" not in shared
    assert len(lab.told()) == 48


# finding and exporting


def test_list_finds_by_words(lab: Any) -> None:
    first = note(lab, text="about muon 100%").session
    note(lab, text="about adam", conversation="conversation-2")
    assert [s.id for s in lab.notebook.list(text="100%")] == [first]
    assert [s.id[-2:] for s in lab.notebook.list()] == ["02", "01"]
    assert [s.id[-2:] for s in lab.notebook.list(limit=1)] == ["02"]
    assert lab.notebook.list(text="sgd") == []


def test_export_as_one_document(lab: Any) -> None:
    first = note(lab, text="alpha <script>alert(1)</script>").session
    note(lab, text="beta", conversation="conversation-2")
    day = first[:10]
    assert "alpha" in lab.notebook.export(first) and "beta" not in lab.notebook.export(first)
    for range_ in ("all", day, f"{day}..{day}", f"{first}..", f"..{day}"):
        text = lab.notebook.export(range_)
        assert "alpha" in text and "beta" in text
    page = lab.notebook.export("all", "html")
    assert page.startswith("<!doctype html>") and "<table>" not in page.split("<style>")[0]
    assert "<script" not in page and "&lt;script" in page
    for session in lab.notebook.list():
        assert f'href="#s-{session.id}"' in page and f'<article id="s-{session.id}">' in page
    with pytest.raises(LabError, match=r"FROM\.\.TO"):
        lab.notebook.export("yesterday")
    with pytest.raises(NotFound):
        lab.notebook.export("1999-01-01")
    with pytest.raises(LabError, match="html"):
        lab.notebook.export("all", "pdf")
