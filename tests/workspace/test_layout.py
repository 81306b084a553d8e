"""Where things lie, how a workspace is found, and that nothing named by a caller leads out of it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from workspace import layout
from workspace.errors import NotFound, Refused
from workspace.layout import Workspace, discover


@pytest.fixture
def lab(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a workspace folder of the given name."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "lab.toml").write_text("")
        return folder

    return make


def test_order_of_discovery(lab: Callable[[str], Path], tmp_path: Path) -> None:
    explicit, variable, project, here = lab("a"), lab("b"), lab("c"), lab("d")
    (here / "deep" / "er").mkdir(parents=True)
    environment = {"LAB_WORKSPACE": str(variable), "CLAUDE_PROJECT_DIR": str(project)}
    cwd = here / "deep" / "er"
    assert discover(explicit, environment=environment, cwd=cwd).root == explicit
    assert discover(environment=environment, cwd=cwd).root == variable
    del environment["LAB_WORKSPACE"]
    assert discover(environment=environment, cwd=cwd).root == project
    assert discover(environment={"CLAUDE_PROJECT_DIR": str(project / "papers")}, cwd=cwd).root == project
    assert discover(environment={}, cwd=cwd).root == here
    # a project that is no lab does not hide the lab one stands in
    assert discover(environment={"CLAUDE_PROJECT_DIR": str(tmp_path)}, cwd=cwd).root == here


def test_the_nearest_workspace_upwards_wins(lab: Callable[[str], Path]) -> None:
    outer, inner = lab("outer"), lab("outer/inner")
    assert discover(environment={}, cwd=inner).root == inner
    assert discover(environment={}, cwd=outer / "papers").root == outer


@pytest.mark.parametrize("how", ["explicit", "variable"])
def test_a_named_folder_that_is_no_workspace_is_not_replaced_by_another(
    lab: Callable[[str], Path], tmp_path: Path, how: str
) -> None:
    here, named = lab("here"), str(tmp_path / "typo")
    with pytest.raises(NotFound, match="lab-mcp init"):
        if how == "explicit":
            discover(named, environment={}, cwd=here)
        else:
            discover(environment={"LAB_WORKSPACE": named}, cwd=here)


def test_no_workspace_names_the_command_that_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "my new lab"
    folder.mkdir()
    with pytest.raises(NotFound) as refusal:
        discover(environment={}, cwd=folder)
    assert f"lab-mcp init '{folder}'" in str(refusal.value)


def test_discovery_from_a_deleted_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(NotFound, match="does not exist any more"):
        discover(environment={})


def test_a_home_that_does_not_exist_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        discover("~nobody-of-this-name/lab", environment={}, cwd=tmp_path)


def test_the_root_is_resolved(lab: Callable[[str], Path], tmp_path: Path) -> None:
    real = lab("real ö")
    (tmp_path / "link").symlink_to(real)
    assert discover(tmp_path / "link", environment={}).root == real


# -- confine ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["a.py", "sub/a.py", "./sub/../a.py", "not/there/yet.py", "", ".", "ä ö/ü.py", "..a/b"]
)
def test_confine_lets_inside_in(lab: Callable[[str], Path], path: str) -> None:
    workspace = Workspace(lab("w"))
    confined = workspace.confine(path)
    assert confined == workspace.root or workspace.root in confined.parents
    assert workspace.confine(workspace.root / path) == confined


@pytest.mark.parametrize("path", ["..", "../x", "a/../../x", "/etc/passwd", "/", "../w2/a.py", "sub/../../w2", "a\0b"])
def test_confine_keeps_outside_out(lab: Callable[[str], Path], path: str) -> None:
    workspace = Workspace(lab("w"))
    lab("w2")  # a sibling whose name begins like ours
    with pytest.raises(Refused, match="script"):
        workspace.confine(path, what="script")


def test_confine_follows_links_before_it_decides(lab: Callable[[str], Path], tmp_path: Path) -> None:
    workspace = Workspace(lab("w"))
    (tmp_path / "secret").write_text("x")
    (workspace.root / "link").symlink_to(tmp_path / "secret")
    (workspace.root / "folder").symlink_to(tmp_path)
    (workspace.root / "inside").symlink_to(workspace.root / "lab.toml")
    (workspace.root / "chain").symlink_to("link")
    for path in ("link", "folder/secret", "folder", "chain"):
        with pytest.raises(Refused):
            workspace.confine(path)
    assert workspace.confine("inside") == workspace.root / "lab.toml"


@pytest.mark.parametrize("path", ["loop", "loop/x", "\ud800", "x" * 5000, "x/" * 3000])
def test_confine_answers_odd_paths_in_words_or_confines_them(lab: Callable[[str], Path], path: str) -> None:
    workspace = Workspace(lab("w"))
    (workspace.root / "loop").symlink_to("loop")
    try:
        confined = workspace.confine(path)
    except Refused:
        return
    assert workspace.root in confined.parents
    assert not confined.exists(), "whoever opens it may trust that the name is a possible one"


def test_relative_never_shows_a_path_outside(lab: Callable[[str], Path], tmp_path: Path) -> None:
    workspace = Workspace(lab("w"))
    assert workspace.relative(workspace.run_dir("run-0001") / "train.log") == "runs/run-0001/train.log"
    assert workspace.relative(tmp_path / "elsewhere" / "x.py") == "x.py"


# -- folders and file systems -----------------------------------------------------------------------------------------


def test_folders_ignore_themselves_and_are_made_twice_without_harm(lab: Callable[[str], Path]) -> None:
    workspace = Workspace(lab("w"))
    workspace.create_folders()
    (workspace.runs_dir / ".gitignore").write_text("mine\n")
    workspace.create_folders()
    assert (workspace.runs_dir / ".gitignore").read_text() == "mine\n"  # what a user changed stays
    assert (workspace.lab_dir / ".gitignore").read_text() == "*\n"
    assert workspace.lab_dir.stat().st_mode & 0o077 == 0
    assert workspace.locks_dir.is_dir() and workspace.state_dir == workspace.lab_dir


def test_on_a_network_file_system_state_moves_to_this_machine(
    lab: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "file_system", lambda path: "nfs4")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    workspace = Workspace(lab("w"))
    expected = tmp_path / "state" / "lab-mcp" / hashlib.sha256(str(workspace.root).encode()).hexdigest()[:16]
    for path in (workspace.database_file, workspace.telemetry_file, workspace.index_dir, workspace.locks_dir):
        assert expected in path.parents
    assert workspace.run_dir("run-0001").parent == workspace.root / "runs"  # runs stay with the workspace
    assert Workspace(lab("w2")).state_dir != workspace.state_dir
    workspace.create_folders()
    assert expected.is_dir()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a", "ext4"), ("/home/a/nfs/lab", "nfs4"), ("/home/a/nfsx", "ext4"), ("/mnt/with space/x", "cifs"),
        ("/", "overlay"), ("/over/lab", "nfs"),
    ],
)  # fmt: skip
def test_file_system_is_that_of_the_longest_mount(path: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = (
        "overlay / overlay rw 0 0\n/dev/sda /home ext4 rw 0 0\nserver:/x /home/a/nfs nfs4 rw 0 0\n"
        "//s/y /mnt/with\\040space cifs rw 0 0\ntmpfs /over tmpfs rw 0 0\nserver:/z /over nfs rw 0 0\nodd\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda self, **options: mounts)
    assert layout.file_system(Path(path)) == kind


def test_file_system_is_unknown_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, **options: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert layout.file_system(Path("/")) == "unknown"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_workspace_is_an_oserror(lab: Callable[[str], Path]) -> None:
    folder = lab("w")
    folder.chmod(0o500)
    with pytest.raises(OSError, match="Permission"):
        Workspace(folder).create_folders()
    folder.chmod(0o700)
    shutil.rmtree(folder)
