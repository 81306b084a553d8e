"""What `doctor` asks of a workspace: can it be written, is there space, who serves it, is its database whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from lab_mcp import connection
from lab_mcp.finding import GIB, Finding, error, note, ok, warn
from rag.index.inspect import index_state
from rag.index.store import SCHEMA
from sessions.index import not_as_seen
from sessions.journal import Journal
from training.promote import promoted
from workspace import process
from workspace.chat import DEFAULT_URLS
from workspace.errors import LabError
from workspace.layout import NETWORK_FILE_SYSTEMS, Workspace, file_system
from workspace.outbox import MAX_ATTEMPTS
from workspace.settings import Settings

LEAST_SPACE, LITTLE_SPACE = GIB, 10 * GIB
CLOCK_TOLERANCE_S = 5.0
LARGEST_CHECKED = GIB // 4  # about a second
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def writable(workspace: Workspace, settings: Settings) -> Iterator[Finding]:
    """Writes and removes one small file: permissions alone do not tell of quotas and read-only mounts."""
    folder = workspace.lab_dir if workspace.lab_dir.is_dir() else workspace.root
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(b"x")
            file.flush()
            drift = os.fstat(file.fileno()).st_mtime - time.time()
    except OSError as problem:
        yield error(
            f"the workspace cannot be written ({problem.strerror})", "nothing can run", "check owner, mount and quota"
        )
        return
    yield ok("the workspace can be written")
    if abs(drift) > CLOCK_TOLERANCE_S:
        yield warn(
            f"the file system's clock is {drift:+.0f} s from this machine's",
            "times of files, heartbeats and another host's service are misjudged",
            "let both set their clock by the network (chrony, systemd-timesyncd)",
        )
    newest = max(
        (f.stat().st_mtime for f in (workspace.service_file, workspace.database_file) if f.exists()), default=0
    )
    if newest > time.time() + CLOCK_TOLERANCE_S:
        yield warn(
            "the lab's files are from the future",
            "this machine's clock was set back, or was wrong when they were written",
            "check the clock (`timedatectl`)",
        )


def space(workspace: Workspace, settings: Settings) -> Iterator[Finding]:
    free = shutil.disk_usage(workspace.root).free
    text = f"{free / GIB:.1f} GiB free for runs and checkpoints"
    if free < LEAST_SPACE:
        yield error(text, "runs will fail when they write a checkpoint", "make space")
    elif free < LITTLE_SPACE:
        yield warn(text, "some checkpoints fill that", "make space, or remove old runs")
    else:
        yield ok(text)
    if hasattr(os, "statvfs"):
        status = os.statvfs(workspace.root)
        if status.f_files and status.f_favail < 10_000:
            yield warn(f"only {status.f_favail} more files can be made on this disk", "runs make many", "make space")


def models(workspace: Workspace, settings: Settings) -> Iterator[Finding]:
    if kept := promoted(workspace):
        size = sum(model["bytes"] for model in kept) / GIB
        yield ok(f"{len(kept)} promoted models, {size:.1f} GiB: {', '.join(model['name'] for model in kept[:10])}")


def network_file_system(workspace: Workspace, settings: Settings) -> Iterator[Finding]:
    kind = file_system(workspace.root)
    if kind in NETWORK_FILE_SYSTEMS:
        yield note(
            f"the workspace is on a network file system ({kind})",
            "locks and databases cannot be trusted there, so database, index and locks of this workspace are kept on "
            f"this machine: {workspace.state_dir}",
            "use the workspace from one machine at a time",
        )


def premises(workspace: Workspace, settings: Settings) -> Iterator[Finding]:
    """What is switched on that may talk to the outside."""
    on = []
    if settings.network.hub:
        on.append("data sets may be fetched from the Hugging Face hub (network.hub)")
    if settings.network.git:
        on.append("start_training may clone from a URL (network.git)")
    url = settings.rag.qdrant_url
    if url and (urlsplit(url).hostname or "") not in LOOPBACK:
        on.append(
            f"passages of notes, papers and results, with their vectors, are kept on the Qdrant server "
            f"{urlsplit(url).hostname} (rag.qdrant_url)"
        )
    if settings.network.arxiv:
        on.append(f"papers may be fetched from {urlsplit(settings.search.arxiv_url).hostname} (network.arxiv)")
    if settings.search.provider != "off":
        on.append(f"questions may be put to a web search, {settings.search.provider} (search.provider)")
    on += asked_models(settings)
    if on:
        yield note("may leave the premises or fetch from outside: " + "; ".join(on), "", "switch off in lab.toml")
    else:
        yield ok("nothing leaves the premises: nothing that talks to the outside is switched on")


def asked_models(settings: Settings) -> list[str]:
    """Language models on other machines that campaigns and `lab-mcp ask` may ask."""
    found, proposer = [], settings.proposer
    if settings.ask.api != "off":
        host = urlsplit(settings.ask.url or DEFAULT_URLS[settings.ask.api]).hostname or ""
        if host not in LOOPBACK:
            found.append(f"lab-mcp ask puts questions, with passages, to a language model at {host} (ask.api)")
    told = "with results, notes and passages of papers"
    if proposer.api != "off":
        host = urlsplit(proposer.url or DEFAULT_URLS[proposer.api]).hostname or ""
        if host not in LOOPBACK:
            found.append(f"campaigns may ask a language model at {host}, {told} (proposer.api)")
    if proposer.claude_code:
        found.append(f"campaigns may ask Claude Code, {told} (proposer.claude_code)")
    return found


def memory(workspace: Workspace, settings: Settings) -> Iterator[Finding]:
    """Where the index of papers, notes and results is kept, whether that place answers, and whether it is whole."""
    url = settings.rag.qdrant_url
    if (found := index_state(workspace.index_dir)) is not None:
        what = f"the index holds {found.documents} documents (model {found.model}, schema {found.schema})"
        if found.problem:
            yield error(
                f"{what}: {found.problem}", "searches fail or miss documents",
                "`lab-mcp shutdown`, then restore .lab/index, or remove it: `lab-mcp index` reads papers again,"
                " notes and results enter again when they are next written",
            )  # fmt: skip
        elif found.model != settings.rag.model or found.schema != SCHEMA:
            yield note(
                f"{what}; wanted are model {settings.rag.model} and schema {SCHEMA}",
                "the next start of memory builds the index anew beside this one, which answers by words until then",
                "nothing",
            )
        else:
            yield ok(what + (f"; {found.failed} could not be read" if found.failed else ""))
    if not url:
        if find_spec("qdrant_edge") is None:
            yield note(
                "there is no qdrant-edge-py for this machine: memory is kept by qdrant-client alone",
                "slow and all in main memory above some 20,000 passages; words are matched without stemming",
                "a Qdrant server serves better: [rag] qdrant_url, see docs/memory.md",
            )
        return
    parts = urlsplit(url)
    name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    port = parts.port or (443 if parts.scheme == "https" else 6333)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=3.0):
            pass
    except OSError as problem:
        yield error(
            f"the Qdrant server {name} does not answer ({problem})",
            "searches fail; notes, papers and results wait and are indexed when it is back",
            "start it, or leave [rag] qdrant_url (LAB_QDRANT_URL) empty to keep the index in the workspace",
        )
        return
    yield ok(f"memory is kept on the Qdrant server {name}, which answers")


def service(workspace: Workspace, settings: Settings) -> Iterator[Finding]:
    endpoint = connection.read_endpoint(workspace)
    if endpoint is None:
        yield ok("no service has run here yet; the first command starts it")
        return
    here = process.host_name()
    if endpoint.identity.host != here:
        age = time.time() - workspace.service_file.stat().st_mtime
        if age < 120:
            yield error(
                f"a live service of {endpoint.identity.host} has this workspace",
                "two services on one workspace would damage its records, so this machine's refuses to start",
                f"work on {endpoint.identity.host}, or run `lab-mcp shutdown` there",
            )
        else:
            yield ok(f"last served by {endpoint.identity.host}, {age / 3600:.0f} hours ago")
        return
    if not process.is_alive(endpoint.identity):
        yield ok("the service is not running; the next command starts it")
        return
    try:
        connection.request(endpoint, "GET", "/healthz", timeout=1.0)
    except (OSError, LabError) as problem:
        yield error(
            f"the service (process {endpoint.identity.pid}) lives but does not answer",
            str(problem),
            f"look at .lab/service.log; end process {endpoint.identity.pid}, it is started again",
        )
        return
    installed = metadata.version("lab-mcp")
    if endpoint.version != installed:
        yield warn(
            f"the running service is version {endpoint.version}, installed is {installed}",
            "new tools and fixes are not in use yet",
            "`lab-mcp shutdown`; the next command starts the new one, runs go on",
        )
    else:
        yield ok(f"the service answers (process {endpoint.identity.pid}, version {installed})")


def database(workspace: Workspace, settings: Settings) -> Iterator[Finding]:
    file = workspace.database_file
    if not file.exists():
        return
    connection_ = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=1.0)
    try:
        yield _integrity(connection_, file.stat().st_size)
        yield from _outbox(connection_)
    except sqlite3.DatabaseError as problem:
        yield error(
            f"lab.db cannot be read ({problem})",
            "state of runs and experiments is in it",
            "stop the service, keep a copy of .lab; the lab can be rebuilt from the run and experiment folders",
        )
    finally:
        connection_.close()


def _integrity(connection_: sqlite3.Connection, size: int) -> Finding:
    if size > LARGEST_CHECKED:
        return note(f"lab.db was not checked: at {size / GIB:.1f} GiB that takes too long here")
    problems = [row[0] for row in connection_.execute("PRAGMA quick_check(3)")]
    if problems == ["ok"]:
        return ok("lab.db is whole")
    return error(
        f"lab.db is damaged: {'; '.join(map(str, problems))[:300]}",
        "state of runs and experiments is in it",
        "stop the service and keep a copy of .lab before anything else",
    )


def _outbox(connection_: sqlite3.Connection) -> Iterator[Finding]:
    if not connection_.execute("SELECT 1 FROM sqlite_master WHERE name = 'outbox'").fetchone():
        return
    waiting, failed = connection_.execute(
        "SELECT coalesce(sum(attempts < ?1), 0), coalesce(sum(attempts >= ?1), 0) FROM outbox WHERE done_at IS NULL",
        (MAX_ATTEMPTS,),
    ).fetchone()
    if failed:
        last = connection_.execute(
            "SELECT topic, error FROM outbox WHERE done_at IS NULL AND attempts >= ? ORDER BY id DESC LIMIT 1",
            (MAX_ATTEMPTS,),
        ).fetchone()
        yield warn(
            f"{failed} changes could not be written to notebook or index (last: {last[0]}, {last[1]})",
            "the notebook is not complete",
            "look at .lab/service.log for the reason",
        )
    if waiting > 1000:
        yield warn(
            f"{waiting} changes wait to be documented", "notebook and index lag behind", "is the service running?"
        )


def notebook(workspace: Workspace, settings: Settings) -> Iterator[Finding]:
    """Every session's chain of entries, from its file, beside what lab.db has seen of it: what was changed, taken out
    or written anew afterwards shows."""
    seen = _seen_sessions(workspace)  # first: what is written meanwhile comes on top
    paths = {path.stem: path for path in sorted(workspace.journal_dir.glob("*.jsonl"))}
    broken = []
    for name in sorted({*paths, *seen}):
        journal = Journal(workspace.journal_dir / f"{name}.jsonl")
        journal.load()
        wrong = [*journal.problems, *(not_as_seen(journal, seen[name]) if name in seen else ())]
        broken += [f"{name}: {problem}" for problem in wrong]
    if broken:
        yield error(
            f"the notebook was changed behind the lab's back: {'; '.join(broken[:3])}",
            "its entries are chained so that this shows; what else they say may not be what was written",
            "compare docs/sessions/.journal with git, and restore it",
        )
    elif paths:
        yield ok(f"the notebook is whole: the entries of {len(paths)} session{'s'[: len(paths) > 1]} follow each other")


def _seen_sessions(workspace: Workspace) -> dict[str, dict[str, str]]:
    """Of every session lab.db knows, the words of its entries as they were written, by id."""
    seen: dict[str, dict[str, str]] = {}
    try:
        with contextlib.closing(sqlite3.connect(f"{workspace.database_file.as_uri()}?mode=ro", uri=True)) as database:
            for session, entry, text in database.execute("SELECT session, entry, text FROM notebook_entries"):
                seen.setdefault(session, {})[entry] = text
    except sqlite3.Error:  # no lab.db yet, or a damaged one: `database` tells of that
        return {}
    return seen


def repository(workspace: Workspace, settings: Settings) -> Iterator[Finding]:
    try:
        import git
    except ImportError:
        return  # git itself is missing: said already
    try:
        with git.Repo(workspace.root, search_parent_directories=True) as found:
            try:
                found.git.rev_parse("--git-dir")
            except git.GitCommandError as problem:
                doubtful = "dubious ownership" in str(problem.stderr)
                yield error(
                    "git refuses this repository" + (": it belongs to another user" if doubtful else ""),
                    "experiments cannot be recorded",
                    f"git config --global --add safe.directory {found.working_dir}" if doubtful else "run `git status`",
                )
                return
            reader = found.config_reader()
            if not (reader.has_option("user", "name") and reader.has_option("user", "email")):
                yield note(
                    "git does not know your name",
                    "the lab signs its commits with its own, but merging a winner into your branch is your commit",
                    'git config --global user.name "..." and user.email "..."',
                )
            if not found.head.is_valid():
                yield note("the repository has no commit yet", "the lab makes a first one, announced, when it needs it")
    except (git.InvalidGitRepositoryError, git.NoSuchPathError):
        yield error(
            "the workspace is not in a git repository", "experiments are kept in git", "run `lab-mcp init` in it"
        )


def files(workspace: Workspace, settings: Settings) -> Iterator[Finding]:
    registration = workspace.root / ".mcp.json"
    if not registration.exists():
        yield note(
            "there is no .mcp.json",
            "Claude Code started in this folder does not find the lab",
            "run `lab-mcp init` in it",
        )
        return
    import json

    try:
        entry = json.loads(registration.read_text(encoding="utf-8")).get("mcpServers", {}).get("lab")
    except (OSError, ValueError, AttributeError):
        yield warn(".mcp.json is not valid", "Claude Code does not find the lab", "mend it, or move it and init again")
        return
    command = (entry or {}).get("command")
    if command and not Path(command).exists():
        yield warn(
            ".mcp.json names a command that is not there any more",
            "Claude Code cannot start the lab (the environment was moved or rebuilt)",
            "remove the entry 'lab' from .mcp.json and run `lab-mcp init`",
        )


CHECKS: list[Callable[[Workspace, Settings], Iterator[Finding]]] = [
    writable, space, models, network_file_system, premises, memory, service, database, notebook, repository, files,
]  # fmt: skip
