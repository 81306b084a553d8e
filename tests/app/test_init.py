"""`lab-mcp init`, and the two things that are set up beside it: the service manager's unit and the shell's commands."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import plistlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import git
import pytest

from lab_mcp import initialise, service_unit, shell_init
from lab_mcp.initialise import init
from workspace import durable
from workspace.errors import LabError, Refused, Unavailable
from workspace.layout import Workspace, discover
from workspace.settings import Settings, load


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below `root` with its content, git's own aside."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(root).parts
    }


def test_a_new_folder_becomes_a_workspace(tmp_path: Path) -> None:
    root = tmp_path / "neu" / "mein Labor ü"
    report = init(root)
    assert discover(environment={}, cwd=root / "papers").root == root
    assert load(root / "lab.toml") == Settings()
    for name in ("program.md", "recipe/recipe.toml", "papers/README.md", ".mcp.json", "runs", "models", ".lab/locks"):
        assert (root / name).exists(), name
    with git.Repo(root) as repository:
        assert repository.active_branch.name == "main" and not repository.head.is_valid()
        untracked = set(repository.untracked_files)
    assert "lab.toml" in untracked and not any(name.startswith(("runs/", ".lab/", "models/")) for name in untracked)
    assert report.changed and report.root == str(root) and not report.kept
    assert all((root / name.split(" ")[0]).exists() for name in report.written)


def test_the_recipe_and_the_program_are_usable_as_written(tmp_path: Path) -> None:
    from training.config import check, load_recipe

    init(tmp_path)
    check(load_recipe(tmp_path / "recipe"))
    program = (tmp_path / "program.md").read_text()
    for heading in ("Goal", "What counts as better", "Constraints", "Ideas", "What was learnt"):
        assert heading in program


def test_a_second_init_changes_nothing_and_says_so(tmp_path: Path) -> None:
    first = init(tmp_path)
    before = snapshot(tmp_path)
    second = init(tmp_path)
    assert snapshot(tmp_path) == before
    assert not second.changed and any("nothing was changed" in note for note in second.notes)
    assert set(second.kept) == {name for name in first.written if not name.startswith(".git ")}
    assert second.register_command == first.register_command
    assert "nothing was changed" in initialise.text(second)


def test_an_existing_repository_keeps_its_files_branch_and_index(tmp_path: Path) -> None:
    with git.Repo.init(tmp_path, initial_branch="trunk") as repository:
        (tmp_path / "program.md").write_text("my own program\n")
        (tmp_path / "train.py").write_text("print(1)\n")
        repository.index.add(["train.py"])
        repository.index.commit("mine")
        head = repository.head.commit.hexsha
        (tmp_path / "staged.txt").write_text("staged\n")
        repository.index.add(["staged.txt"])
    report = init(tmp_path)
    assert (tmp_path / "program.md").read_text() == "my own program\n" and "program.md" in report.kept
    with git.Repo(tmp_path) as repository:
        assert repository.active_branch.name == "trunk" and repository.head.commit.hexsha == head
        assert [entry.b_path for entry in repository.index.diff("HEAD")] == ["staged.txt"]
    assert not any(name.startswith(".git") for name in report.written)


def test_a_repository_without_commits_is_announced(tmp_path: Path) -> None:
    git.Repo.init(tmp_path, initial_branch="main").close()
    report = init(tmp_path)
    assert any("no commit yet" in note for note in report.notes)


def test_a_folder_of_a_larger_repository_joins_it_unless_ignored(tmp_path: Path) -> None:
    with git.Repo.init(tmp_path / "project", initial_branch="main"):
        (tmp_path / "project" / ".gitignore").write_text("scratch/\n")
    joined = init(tmp_path / "project" / "lab")
    assert not (tmp_path / "project" / "lab" / ".git").exists() and any("project" in note for note in joined.notes)
    own = init(tmp_path / "project" / "scratch")
    assert (tmp_path / "project" / "scratch" / ".git").is_dir() and any("ignores" in note for note in own.notes)


def test_the_registration_starts_this_installation_in_this_workspace(tmp_path: Path) -> None:
    root = tmp_path / "a lab's ü"
    report = init(root)
    server = json.loads((root / ".mcp.json").read_text())["mcpServers"]["lab"]
    assert Path(server["command"]).is_absolute() and Path(server["command"]).exists()
    assert server["args"][-1] == "mcp" and server["env"] == {"LAB_WORKSPACE": str(root)}
    words = shlex.split(report.register_command)
    assert words[:4] == ["claude", "mcp", "add", "lab"] and f"LAB_WORKSPACE={root}" in words
    assert words[words.index("--") + 1 :] == [server["command"], *server["args"]]


def test_other_servers_in_mcp_json_stay_as_they_are(tmp_path: Path) -> None:
    mine = {"mcpServers": {"größe": {"type": "http", "url": "http://x"}}, "other": [1, {"a": None}]}
    (tmp_path / ".mcp.json").write_text(json.dumps(mine))
    init(tmp_path)
    now = json.loads((tmp_path / ".mcp.json").read_text())
    assert now.pop("other") == mine["other"] and list(now["mcpServers"]) == ["größe", "lab"]
    assert now["mcpServers"]["größe"] == mine["mcpServers"]["größe"]  # type: ignore[index]


def test_another_server_of_our_name_is_kept_and_told(tmp_path: Path) -> None:
    text = json.dumps({"mcpServers": {"lab": {"command": "somebody-elses"}}})
    (tmp_path / ".mcp.json").write_text(text)
    report = init(tmp_path)
    assert (tmp_path / ".mcp.json").read_text() == text
    assert ".mcp.json" in report.kept and any("another server named 'lab'" in note for note in report.notes)


# -- refusals: nothing half-written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["{broken", "[]", '{"mcpServers": []}', '{"mcpServers": null}'])
def test_an_unreadable_mcp_json_is_refused_before_anything_is_written(tmp_path: Path, content: str) -> None:
    (tmp_path / ".mcp.json").write_text(content)
    with pytest.raises(Refused, match=r"\.mcp\.json"):
        init(tmp_path)
    assert snapshot(tmp_path) == {".mcp.json": content.encode()} and not (tmp_path / ".git").exists()


@pytest.mark.parametrize("name", [".", "runs", "recipe"])
def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "lab"
    if name == ".":
        root.write_text("a file")
    else:
        root.mkdir()
        (root / name).write_text("a file")
    with pytest.raises(Refused, match="file"):
        init(root)
    assert not (root / "lab.toml").exists()


def test_a_bare_repository_is_refused(tmp_path: Path) -> None:
    git.Repo.init(tmp_path, bare=True).close()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Refused, match="bare"):
        init(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder that others may enter, and, when we are root, an ordinary user's rights while in the block."""
    folder = Path(tempfile.mkdtemp(prefix="lab-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("new", [True, False], ids=["new folder in it", "the folder itself"])
def test_a_read_only_folder_gets_a_clear_refusal_and_nothing_else(tmp_path: Path, new: bool) -> None:
    init(tmp_path / "warm")  # everything is imported before the rights are given up
    with unprivileged() as parent:
        locked = parent / "locked"
        locked.mkdir(mode=0o555)
        with as_nobody(), pytest.raises(Unavailable, match=r"could not be written|cannot be written|git could not"):
            init(locked / "lab" if new else locked)
        assert list(locked.iterdir()) == []
        secret = parent / "secret"
        secret.mkdir(mode=0o700)
        if os.geteuid() == 0:
            with as_nobody(), pytest.raises(Unavailable):
                init(secret / "lab")


@pytest.mark.parametrize("failing", [1, 3, 5])
@pytest.mark.parametrize("existing", [False, True])
def test_a_disk_that_fills_up_half_way_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, existing: bool
) -> None:
    root = tmp_path / "deep" / "lab"
    if existing:
        root.mkdir(parents=True)
        (root / "mine.txt").write_text("mine")
    write, calls = durable.write_text, []

    def fail(path: Path, text: str, **options: Any) -> None:
        calls.append(path)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text, **options)

    monkeypatch.setattr(durable, "write_text", fail)
    with pytest.raises(Unavailable, match="No space left on device"):
        init(root)
    assert [p.name for p in tmp_path.iterdir()] == (["deep"] if existing else [])
    if existing:
        assert [p.name for p in root.iterdir()] == ["mine.txt"]
    monkeypatch.undo()
    assert init(root).changed


def test_without_git(tmp_path: Path) -> None:
    """GitPython refuses to be imported without a git program, so this needs a fresh process."""
    code = (
        "import sys\nsys.path.insert(0, sys.argv[2])\nfrom lab_mcp.initialise import init\n"
        "from workspace.errors import LabError\n"
        "try:\n    init(sys.argv[1])\nexcept LabError as error:\n    print(error)\n"
    )
    repository = str(Path(initialise.__file__).parent.parent)
    answer = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "lab"), repository],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "git is not installed" in answer.stdout and not (tmp_path / "lab").exists()


def test_an_impossible_backend_is_told_at_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_BACKEND", "abacus")
    with pytest.raises(LabError, match="LAB_BACKEND"):
        init(tmp_path / "lab")
    assert not (tmp_path / "lab").exists()


# -- service manager and shell ----------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    root = tmp_path / 'odd 100% $HOME "lab"'
    root.mkdir()
    (root / "lab.toml").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return Workspace(root)


def test_a_dry_run_shows_and_writes_nothing(workspace: Workspace, tmp_path: Path) -> None:
    lines = service_unit.install(workspace, dry_run=True, system="Linux")
    assert "would write" in lines[0] and not (tmp_path / "home").exists()


def test_the_systemd_unit_is_quoted_for_systemd(workspace: Workspace, tmp_path: Path) -> None:
    path, text = service_unit.systemd_unit(workspace)
    assert path.parent == tmp_path / "home" / ".config" / "systemd" / "user" and path.suffix == ".service"
    start = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    assert start.endswith('odd 100%% $$HOME \\"lab\\""') and '"lab_mcp.keeper"' in start
    assert "KillMode=process" in text  # systemd's default would end every run with the service
    assert "LAB_SERVICE__IDLE_MINUTES=0" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(workspace: Workspace, tmp_path: Path) -> None:
    path, text = service_unit.systemd_unit(workspace)
    unit = tmp_path / path.name
    unit.write_text(text)
    answer = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in answer.stderr.splitlines() if path.name in line]
    assert not complaints, complaints


def test_the_unit_carries_no_secret(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hunter2@proxy")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "hunter2")
    assert "hunter2" not in service_unit.systemd_unit(workspace)[1] + service_unit.launchd_agent(workspace)[1]


def test_the_launchd_agent_is_a_property_list(workspace: Workspace, tmp_path: Path) -> None:
    lines = service_unit.install(workspace, system="Darwin")
    path = tmp_path / "home" / "Library" / "LaunchAgents" / f"{service_unit.unit_name(workspace)}.plist"
    content = plistlib.loads(path.read_bytes())
    assert content["ProgramArguments"][-1] == str(workspace.root) and content["AbandonProcessGroup"] is True
    assert content["Label"] == path.stem and any("launchctl bootstrap" in line for line in lines)
    assert "up to date" in service_unit.install(workspace, system="Darwin")[0]
    path.write_text("mine")
    with pytest.raises(Refused, match="not written by lab-mcp"):
        service_unit.install(workspace, system="Darwin")
    assert path.read_text() == "mine"


def test_two_workspaces_of_one_name_have_two_units(tmp_path: Path) -> None:
    names = {service_unit.unit_name(Workspace(tmp_path / parent / "lab")) for parent in "ab"}
    assert len(names) == 2 and all(name.startswith("lab-mcp-lab-") for name in names)


def test_without_a_service_manager(workspace: Workspace) -> None:
    with pytest.raises(Unavailable, match="Plan9"):
        service_unit.install(workspace, system="Plan9")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_functions_are_accepted_by_the_shell(shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    script = shell_init.text(shell) + "\ntype gpu-status train-status train-log lab-runs\n"
    answer = subprocess.run([program, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0 and answer.stdout.count("function") >= 4, answer.stderr


def test_every_shell_function_is_a_real_command() -> None:
    from typer.main import get_command

    from lab_mcp import cli, cli_runs

    if not cli.app.registered_commands or not any(c.callback is cli_runs.gpu for c in cli.app.registered_commands):
        cli_runs.register(cli.app)
    known = set(get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert set(shell_init.COMMANDS.values()) <= known
    with pytest.raises(Refused, match="bash, zsh, fish"):
        shell_init.text("tcsh")
