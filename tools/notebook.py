"""The notebook tool: `write_session_note`."""

from __future__ import annotations

from typing import Any, Literal

import anyio.to_thread
from pydantic import Field

from tools.lab import Lab
from tools.tool import Arguments, Caller, Result, Tool


class WriteSessionNoteArguments(Arguments):
    text: str = Field(min_length=1, description="Markdown, at most 20,000 characters")
    section: str = Field(
        "Results", max_length=40, description="Objective, Hypothesis, Method, Results, Analysis or Next steps"
    )
    session_id: str | None = Field(None, max_length=40, description="another session than this one")
    runs: list[str] | None = Field(None, max_length=20)
    experiments: list[str] | None = Field(None, max_length=20)
    papers: list[str] | None = Field(None, max_length=20, description="files, arXiv ids or titles")
    author: Literal["assistant", "user"] = Field("assistant", description="user: the user's own words, verbatim")
    idempotency_key: str | None = Field(
        None, min_length=4, max_length=100, description="the same key adds nothing twice"
    )


class WriteSessionNoteResult(Result):
    session_id: str
    entry_id: str
    section: str
    page: str = Field(description="the notebook page, as people read it")
    next: str


async def write_session_note(lab: Lab, arguments: WriteSessionNoteArguments, caller: Caller) -> WriteSessionNoteResult:
    links = {"runs": arguments.runs, "experiments": arguments.experiments, "papers": arguments.papers}
    for run in arguments.runs or []:
        await anyio.to_thread.run_sync(lab.runs.get, run)  # an unknown id is refused with the closest
    entry = await anyio.to_thread.run_sync(
        lambda: lab.notebook.write(
            conversation=caller.conversation,
            session=arguments.session_id,
            section=arguments.section,
            text=arguments.text,
            links={name: ids for name, ids in links.items() if ids},
            key=f"note:{caller.key}" if caller.key else None,
            author=arguments.author,
        )
    )
    session = await anyio.to_thread.run_sync(lab.notebook.get, entry.session)
    return WriteSessionNoteResult(
        session_id=entry.session,
        entry_id=entry.id,
        section=entry.section or arguments.section,
        page=f"docs/sessions/{session.page}",
        next="it can be found with rag_search within two seconds",
    )


TOOLS: list[Tool[Any, Any]] = [
    Tool(
        name="write_session_note",
        title="Write in the notebook",
        description=(
            "Add a note to this conversation's page of the lab notebook (docs/sessions/): why (Objective, Hypothesis), "
            "how (Method), what came out (Results), what it means (Analysis), what next (Next steps). Calls, runs and "
            "verdicts are recorded by themselves; write what only you or the user know: reasons, decisions. Write "
            "while working, not at the end."
        ),
        arguments=WriteSessionNoteArguments,
        result=WriteSessionNoteResult,
        run=write_session_note,
        example={"section": "Next steps", "text": "Repeat exp-0003 with twice the context."},
        read_only=False,
    ),
]
