"""Scripts from repositories: cloned at a known commit, apart from everybody's tree."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path

import git
import pytest
from runs_support import Bench

from training.runs import source
from training.runs.records import RunRequest
from workspace.errors import LabError, NotFound, Unavailable
from workspace.settings import Settings


@pytest.fixture
def repo(tmp_path: Path) -> git.Repo:
    """A repository with the branches main and try/two, a tag, and an uncommitted change."""
    repo = git.Repo.init(tmp_path / "Röpo 1", initial_branch="main")
    with repo.config_writer() as config:
        config.set_value("user", "name", "A Researcher").set_value("user", "email", "a@example.org")
    root = Path(repo.working_dir)
    (root / "train.py").write_text("import helper, os; print(helper.NAME, os.getcwd().split(os.sep)[-2:])")
    (root / "helper.py").write_text("NAME = 'main'")
    repo.index.add(["train.py", "helper.py"])
    repo.index.commit("first")
    repo.create_tag("v1")
    repo.git.checkout("-q", "-b", "try/two")
    (root / "helper.py").write_text("NAME = 'two'")
    repo.index.add(["helper.py"])
    repo.index.commit("second")
    repo.git.checkout("-q", "main")
    (root / "helper.py").write_text("NAME = 'uncommitted'")
    return repo


def start(bench: Bench, repo: object, branch: str | None = None, script: str = "train.py") -> str:
    return bench.runs.start(RunRequest(kind="script", script=script, repo=str(repo), branch=branch)).id


@pytest.mark.parametrize(("branch", "name"), [(None, "main"), ("main", "main"), ("try/two", "two"), ("v1", "main")])
def test_script_of_a_branch(bench: Bench, repo: git.Repo, branch: str | None, name: str) -> None:
    before = repo.git.status("--porcelain", "--branch")
    run_id = start(bench, repo.working_dir, branch)
    record = bench.end(run_id)
    assert record.state == "succeeded", bench.text(run_id)
    assert bench.text(run_id) == f"{name} ['{run_id}', 'source']\n"
    assert record.source is not None
    assert record.source["commit"] == repo.commit(branch or "main").hexsha
    assert record.source["branch"] == branch
    assert repo.git.status("--porcelain", "--branch") == before
    assert list((bench.workspace.cache_dir / "staging").iterdir()) == []


def test_new_commits_are_fetched_and_old_ones_can_be_named(bench: Bench, repo: git.Repo) -> None:
    first = repo.head.commit.hexsha
    bench.end(start(bench, repo.working_dir))
    repo.index.add(["helper.py"])
    repo.index.commit("third")
    run_id = start(bench, f"file://{repo.working_dir}")
    bench.end(run_id)
    assert bench.text(run_id).startswith("uncommitted")  # as it was called; committed now
    run_id = start(bench, repo.working_dir, first[:10])
    assert bench.end(run_id).source == {"repo": "Röpo 1", "branch": first[:10], "commit": first}
    assert bench.text(run_id).startswith("main")


def test_clone_stands_alone(bench: Bench, repo: git.Repo) -> None:
    """No object of it lies elsewhere: caches may be deleted."""
    run_id = start(bench, repo.working_dir)
    source = bench.folder(run_id) / "source"
    assert not (source / ".git" / "objects" / "info" / "alternates").exists()
    assert git.Repo(source).remotes.origin.url == str(Path(repo.working_dir).resolve())
    bench.end(run_id)


@pytest.mark.parametrize(
    ("address", "branch", "script", "words"),
    [
        (None, "try/tow", "train.py", "closest try/two"),
        (None, "--upload-pack=touch x", "train.py", "no branch"),
        (None, "0123456789", "train.py", "no commit"),
        (None, None, "trian.py", "closest train.py"),
        (None, None, "../outside.py", "outside the repository"),
        (None, None, "/etc/passwd", "outside the repository"),
        ("/nowhere/at/all", None, "train.py", "no folder"),
        ("ext::sh -c touch% pwned", None, "train.py", "unknown protocol"),
        ("--upload-pack=touch", None, "train.py", "no git URL"),
        ("", None, "train.py", "no git URL"),
        ("~no-such-user/x", None, "train.py", "cannot be followed"),
        ("x" * 300, None, "train.py", "cannot be followed"),
        (".", None, "train.py", "no git repository"),
        ("http://127.0.0.1:9/x.git", None, "train.py", "could not clone"),
    ],
)
def test_what_cannot_be_cloned_changes_nothing(
    bench: Bench, repo: git.Repo, address: str | None, branch: str | None, script: str, words: str
) -> None:
    with pytest.raises(LabError) as refusal:
        start(bench, repo.working_dir if address is None else address, branch, script)
    assert words in str(refusal.value), refusal.value
    assert bench.runs.list() == []
    assert [p for p in bench.workspace.runs_dir.iterdir() if p.is_dir()] == []
    staging = bench.workspace.cache_dir / "staging"
    assert not staging.exists() or list(staging.iterdir()) == []


def test_a_link_out_of_the_repository_is_refused(bench: Bench, repo: git.Repo) -> None:
    root = Path(repo.working_dir)
    (root / "leak.py").symlink_to("/etc/passwd")
    repo.index.add(["leak.py"])
    repo.index.commit("leak")
    with pytest.raises(LabError, match="outside the repository"):
        start(bench, root, None, "leak.py")


def test_hooks_of_the_user_do_not_run(
    bench: Bench, repo: git.Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "hook ran"
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch '{mark}'\n")
    (hooks / "post-checkout").chmod(0o755)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text(f"[init]\ntemplateDir = {tmp_path / 'template'}\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    bench.end(start(bench, repo.working_dir))
    assert not mark.exists()


def test_urls_need_leave(bench: Bench) -> None:
    bench.runs.settings = Settings.model_validate({"network": {"git": False}})
    for address in ("https://example.org/x.git", "git@example.org:x.git", "ssh://example.org/x"):
        with pytest.raises(LabError, match="switched off"):
            start(bench, address)


def test_credentials_in_an_address_are_not_shown(bench: Bench) -> None:
    with pytest.raises(LabError) as refusal:
        start(bench, "http://ada:lovelace@127.0.0.1:9/x.git")
    assert "lovelace" not in str(refusal.value)


def test_empty_repository(bench: Bench, tmp_path: Path) -> None:
    git.Repo.init(tmp_path / "empty")
    with pytest.raises(NotFound, match="no commit yet"):
        start(bench, tmp_path / "empty")


def test_credentials_in_an_address_are_not_left_in_the_run_folder(bench: Bench, repo: git.Repo, tmp_path: Path) -> None:
    bare = tmp_path / "web" / "x.git"
    repo.clone(str(bare), bare=True).git.update_server_info()
    handler = functools.partial(_Quiet, directory=str(bare.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run_id = start(bench, f"http://ada:lovelace@127.0.0.1:{server.server_port}/x.git")
        server.shutdown()
    bench.end(run_id)
    for file in bench.folder(run_id).rglob("*"):
        assert not file.is_file() or b"lovelace" not in file.read_bytes(), file
    assert git.Repo(bench.folder(run_id) / "source").remotes.origin.url.startswith("http://127.0.0.1:")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing of it belongs in a test's output."""


def test_a_clone_that_takes_long_goes_on_and_is_there_the_next_time(
    bench: Bench, repo: git.Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh, gate, fetched = source._refresh, threading.Event(), []

    def slow(mirror: Path, address: str) -> None:
        gate.wait(60)
        refresh(mirror, address)
        fetched.append(address)

    monkeypatch.setattr(source, "_refresh", slow)
    monkeypatch.setattr(source, "CLONE_WAIT_S", 0.2)
    request = RunRequest(kind="script", script="train.py", repo=str(repo.working_dir))
    for _ in range(2):  # the second waits for the same clone
        with pytest.raises(Unavailable, match="still being cloned"):
            bench.runs.start(request, key="slow")
    assert bench.runs.list() == []
    gate.set()
    bench.until(lambda: fetched and not source._fetches, tick=False)
    assert len(fetched) == 1
    monkeypatch.setattr(source, "CLONE_WAIT_S", 60.0)
    assert bench.end(bench.runs.start(request, key="slow").id).state == "succeeded"
