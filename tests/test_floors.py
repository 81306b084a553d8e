"""The house: imports run strictly downwards, nothing heavy is imported at start-up, and files stay readable."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "workspace": 0,
    "training": 1,
    "rag": 1,
    "sessions": 1,
    "experiments": 2,
    "tools": 3,
    "lab_mcp": 4,
}
LINES_AT_MOST = 420
HEAVY = (
    "torch", "transformers", "sentence_transformers", "qdrant_client", "qdrant_edge", "onnxruntime", "onnx", "plotly",
    "scipy", "optuna", "sklearn", "pandas", "datasets", "pyarrow",
)  # fmt: skip
# What the parts of the service import as they start, and what must answer at once: the bridge, the keeper, the
# supervisor of a run. A module that is not there yet is left out.
STARTS = [
    "lab_mcp.service", "lab_mcp.server", "lab_mcp.bridge", "lab_mcp.keeper", "lab_mcp.cli", "lab_mcp.compose",
    "lab_mcp.doctor", "lab_mcp.initialise", "tools.server", "training.config", "training.telemetry",
    "training.hardware.devices", "training.runs.manager", "training.runs.supervisor", "rag.client",
    "sessions.notebook", "experiments.lab",
]  # fmt: skip
STANDARD_LIBRARY_ONLY = [
    "workspace.clock", "workspace.durable", "workspace.errors", "workspace.interpreter", "workspace.process",
    "workspace.secrets", "lab_mcp.keeper", "training.runs.supervisor", "training.runs.shim",
]  # fmt: skip


@cache
def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Every module of ours, by its dotted name."""
    found = {}
    for package in FLOORS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = (path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(module: str, *, at_start: bool) -> set[str]:
    """Names that a module imports: everywhere in it, or only what runs when it is imported itself."""
    path, tree = modules()[module]
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_start and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        ):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return names


def our_modules(names: set[str]) -> set[str]:
    return {name for name in names if name in modules()}


def test_there_is_something_to_check() -> None:
    assert {name.split(".")[0] for name in modules()} == set(FLOORS) and len(modules()) > 40
    assert "workspace.errors" in imports("workspace.layout", at_start=True)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_run_strictly_downwards(module: str) -> None:
    """Also inside functions: a late import upwards is a circle all the same. Neighbours on a floor are apart."""
    package = module.split(".")[0]
    for name in imports(module, at_start=False):
        other = name.split(".")[0]
        if other in FLOORS and other != package:
            assert FLOORS[other] < FLOORS[package], f"{module} (floor {FLOORS[package]}) imports {name}"


def test_there_is_no_circle_between_files() -> None:
    graph = {name: our_modules(imports(name, at_start=True)) - {name} for name in modules()}
    # importing a.b runs a/__init__ first, which is empty by agreement: a package is no neighbour of its own modules
    for name, targets in graph.items():
        graph[name] = {t for t in targets if not name.startswith(f"{t}.")}
    assert circle(graph) is None, " -> ".join(circle(graph) or [])


def test_there_is_no_circle_between_folders() -> None:
    """Within a package, too: a folder that another folder imports from must not import from that one."""
    graph: dict[str, set[str]] = {}
    for name, (path, _) in modules().items():
        folder = folder_of(path)
        for target in our_modules(imports(name, at_start=False)):
            other = folder_of(modules()[target][0])
            # a sub-folder may use what lies in the folder around it; that is the house it stands in
            if other != folder and not folder.startswith(other) and not other.startswith(folder):
                graph.setdefault(folder, set()).add(other)
    for targets in list(graph.values()):
        for target in targets:
            graph.setdefault(target, set())
    assert circle(graph) is None, " -> ".join(circle(graph) or [])


def folder_of(path: Path) -> str:
    return path.parent.relative_to(ROOT).as_posix()


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """One circle as a list of names, None when there is none (depth first)."""
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str] | None:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return None
        for target in sorted(graph.get(name, ())):
            if found := walk(target, [*trail, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(graph) if (found := walk(name, []))), None)


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


@pytest.mark.parametrize("package", [name for name, (path, _) in modules().items() if path.name == "__init__.py"])
def test_packages_import_nothing_by_themselves(package: str) -> None:
    assert imports(package, at_start=True) == set()


# -- start-up ---------------------------------------------------------------------------------------------------------

PROBE = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
importlib.import_module(sys.argv[2])
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""


def loaded_by(module: str) -> set[str]:
    """Top-level names that importing `module` loads, in a fresh interpreter."""
    command = [sys.executable, "-P", "-s", "-c", PROBE, str(ROOT), module]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return set(json.loads(answer.stdout))


@pytest.mark.parametrize("module", STARTS)
def test_nothing_heavy_is_imported_at_start(module: str) -> None:
    if module not in modules():
        pytest.skip(f"{module} is not there yet")
    assert loaded_by(module).isdisjoint(HEAVY), sorted(loaded_by(module) & set(HEAVY))


@pytest.mark.parametrize("module", STANDARD_LIBRARY_ONLY)
def test_small_processes_need_the_standard_library_only(module: str) -> None:
    if module not in modules():
        pytest.skip(f"{module} is not there yet")
    foreign = loaded_by(module) - set(sys.stdlib_module_names) - set(FLOORS)
    assert not foreign, sorted(foreign)


def test_the_probe_would_notice() -> None:
    heavy = [name for name in modules() if imports(name, at_start=True) & {"numpy", "psutil"}]
    assert heavy and loaded_by(heavy[0]) & {"numpy", "psutil"}


# -- what must not be written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", sorted(modules()))
def test_no_shell_and_no_swallowed_exception(module: str) -> None:
    path, tree = modules()[module]
    where = path.relative_to(ROOT)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            shell = [k for k in node.keywords if k.arg == "shell" and getattr(k.value, "value", True) is not False]
            assert not shell, f"{where}:{node.lineno} runs a shell"
            assert ast.unparse(node.func) not in ("os.system", "os.popen"), f"{where}:{node.lineno} runs a shell"
            if ast.unparse(node.func).endswith("suppress"):
                broad = {"Exception", "BaseException"} & {ast.unparse(argument) for argument in node.args}
                assert not broad, f"{where}:{node.lineno} suppresses everything"
        if isinstance(node, ast.ExceptHandler):
            caught = {"Exception", "BaseException"} if node.type is None else set(names_in(node.type))
            silent = all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
            assert not (silent and caught & {"Exception", "BaseException"}), (
                f"{where}:{node.lineno} swallows everything"
            )
            assert node.type is not None, f"{where}:{node.lineno} has a bare except"


def names_in(node: ast.expr) -> list[str]:
    return [ast.unparse(part) for part in (node.elts if isinstance(node, ast.Tuple) else [node])]


@pytest.mark.parametrize("module", sorted(modules()))
def test_files_stay_readable(module: str) -> None:
    path, _ = modules()[module]
    count = len(path.read_text(encoding="utf-8").splitlines())
    assert count < LINES_AT_MOST, f"{path.relative_to(ROOT)} has {count} lines"
