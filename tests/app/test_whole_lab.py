"""The parts together, through a real client: notebook, memory and experiments tell each other what happened."""

from __future__ import annotations

import random

import anyio
import pytest
from mcp import Client
from tests_support import TINY, kill_service, processes_of

from workspace.layout import Workspace

pytestmark = pytest.mark.anyio
KILLS = 8


async def ask(client: Client, tool: str, **arguments) -> dict:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content[0].text
    return answer.structured_content


async def refused(client: Client, tool: str, **arguments) -> str:
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error, answer.structured_content
    return answer.content[0].text


async def found(client: Client, query: str, id_begins: str, **more) -> dict:
    """The first hit whose id begins so; the index gets a few seconds to take it in."""
    for _ in range(60):
        hits = (await ask(client, "rag_search", query=query, **more))["hits"]
        for hit in hits:
            if hit["id"].startswith(id_begins):
                return hit
        await anyio.sleep(0.25)
    raise AssertionError(f"{id_begins} is not among {[hit['id'] for hit in hits]}")


def recipe(lab: Workspace) -> None:
    """A recipe so small that a run takes seconds."""
    tables: dict[str, list[str]] = {}
    for key, value in TINY.items():
        table, name = key.split(".")
        tables.setdefault(table, []).append(f"{name} = {value}")
    text = "\n".join(f"[{table}]\n" + "\n".join(lines) for table, lines in tables.items())
    (lab.recipe_dir / "recipe.toml").write_text(text + '\n[budget]\nkind = "steps"\namount = 6\n')


async def test_a_note_is_found_by_meaning_and_a_run_is_written_down(lab: Workspace, connect) -> None:
    (lab.root / "greet.py").write_text("import time\nprint('hello')\ntime.sleep(1.2)\n")
    async with connect(conversation="first") as client:
        text = "The zebra tokenizer wastes a third of its vocabulary on whitespace."
        written = await ask(client, "write_session_note", section="analysis", text=text)
        assert written["section"] == "Analysis"
        hit = await found(client, "vocabulary spent on blanks by the zebra tokenizer", "note-", kinds=["note"])
        assert "whitespace" in hit["quote"]
        assert hit["source"] == written["page"]

        run = await ask(client, "start_training", script="greet.py", name="say hello")
        ended = await ask(client, "wait_for_run", run_id=run["run_id"])
        assert ended["state"] == "succeeded"
        page = lab.root / written["page"]
        for _ in range(40):
            if "succeeded" in page.read_text():
                break
            await anyio.sleep(0.25)
        assert f"{run['run_id']}](../../runs/{run['run_id']}/) (say hello) ended: succeeded" in page.read_text()
        assert "start_training" in page.read_text()
        assert (await found(client, "say hello", run["run_id"], kinds=["run"]))["kind"] == "run"


async def test_two_conversations_keep_their_notes_apart(lab: Workspace, connect) -> None:
    async with connect("legacy", conversation="one") as one, connect("auto", conversation="two") as two:
        async with anyio.create_task_group() as group:

            async def write(client: Client, name: str) -> None:
                for number in range(5):
                    await ask(client, "write_session_note", text=f"note {number} of {name}", section="Results")

            group.start_soon(write, one, "alpha")
            group.start_soon(write, two, "beta")
        pages = [path.read_text() for path in sorted(lab.sessions_dir.glob("*.md"))]
    assert len(pages) == 2
    assert sorted(("alpha" in page, "beta" in page) for page in pages) == [(False, True), (True, False)]
    assert all(sum(f"note {n} of" in page for n in range(5)) == 5 for page in pages)


async def test_reading_alone_opens_no_session(lab: Workspace, connect) -> None:
    async with connect() as client:
        await ask(client, "gpu_status")
        await ask(client, "lab_overview")
        await ask(client, "list_experiments")
    assert not list(lab.sessions_dir.glob("*.md"))


async def test_a_person_edits_the_page_between_two_notes(lab: Workspace, connect) -> None:
    async with connect() as client:
        written = await ask(client, "write_session_note", text="before", section="Results")
        page = lab.root / written["page"]
        page.write_text(page.read_text().replace("before", "before\n\nI saw smoke."))
        await ask(client, "write_session_note", text="after", section="Results")
        assert {"before", "after", "smoke"} <= set(page.read_text().replace(".", " ").split())


async def test_clear_refusals(lab: Workspace, connect) -> None:
    hypothesis = {"change": {"optimizer.matrix_lr": 0.02}, "direction": "lower", "smallest_effect": 0.01}
    (lab.papers_dir / "broken.pdf").write_bytes(b"%PDF-1.7 not really")
    async with connect() as client:
        assert "no run" in await refused(client, "wait_for_run", run_id="run-0042")
        assert "Objective, Hypothesis" in await refused(client, "write_session_note", text="x", section="Conclusions")
        assert "query" in await refused(client, "rag_search", query="  ")
        told = await refused(client, "propose_and_run_experiment", statement="Half the rate lowers it", **hypothesis)
        assert "'metric' is missing" in told and "for example" in told
        told = await refused(
            client, "propose_and_run_experiment", statement="It gets better somehow", metric="val_bpb", **hypothesis
        )
        assert "vague" in told
        told = await refused(client, "start_training", overrides={"model.dept": 3})
        assert "model.depth" in told
        told = await refused(client, "start_training", script="../outside.py")
        assert "outside the workspace" in told
        told = await refused(client, "start_training", overrides={"budget.amount": -3})
        assert "budget.amount" in told
        indexed = await ask(client, "rag_index")
        assert indexed["failed"][0]["source"] == "papers/broken.pdf"
        assert (await ask(client, "list_runs"))["total"] == 0, "a refused call changes nothing"


async def test_the_first_search_on_a_fresh_machine_finds_something_true(connect) -> None:
    async with connect() as client:
        hit = await found(client, "how many tokens per parameter are best for a fixed compute budget", "shelf:")
        assert "compute" in hit["title"].lower()


@pytest.mark.slow
async def test_an_experiment_from_proposal_to_memory_while_everything_is_killed(lab: Workspace, connect) -> None:
    """kill -9 of service, keeper and worker again and again: one row, one commit, one note."""
    recipe(lab)
    async with connect(conversation="night") as client:
        proposed = await ask(
            client,
            "propose_and_run_experiment",
            statement="A hundredth of matrix_lr lowers val_bpb, which nobody believes",
            change={"optimizer.matrix_lr": 0.0004},
            metric="val_bpb",
            direction="lower",
            smallest_effect=0.05,
        )
        experiment = proposed["experiment_id"]
        moments = random.Random(11)
        kills = iter(range(KILLS))
        with anyio.fail_after(800):
            while True:
                pause = moments.uniform(0.5, 12.0)
                answer = await ask(client, "list_experiments", experiment_id=experiment, wait_s=pause)
                if answer["experiments"][0]["state"] == "done":
                    break
                if (number := next(kills, None)) is not None:
                    for process in processes_of(lab.root) if number % 2 else ():
                        if "rag.worker" in process.cmdline():
                            process.kill()
                    kill_service(lab, keeper=number % 3 == 0)
        view = answer["experiments"][0]
        assert view["verdict"] in ("discard", "inconclusive", "keep"), view
        rows = [line for line in lab.results_file.read_text().splitlines() if experiment in line]
        assert len(rows) == 1
        page = next(lab.sessions_dir.glob("*.md")).read_text()
        assert page.count(view["sentence"]) == 1
        hit = await found(client, "a hundredth of the matrix learning rate", experiment, kinds=["experiment"])
        assert hit["kind"] == "experiment"
        overview = await ask(client, "lab_overview")
        assert overview["last_learnt"][0]["experiment"] == experiment
    import git

    repository = git.Repo(lab.root)
    assert sum(head.name == f"lab/{experiment}" for head in repository.heads) == 1
    repository.close()
