"""The command line. Everything that reads or changes the lab goes through the service, as the assistant's calls do."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lab_mcp import connection
from lab_mcp.terminal import console
from training.runs.waking import ASKED_AT
from workspace import process
from workspace.errors import LabError
from workspace.layout import Workspace, discover

app = typer.Typer(
    help="An AI research lab behind one MCP server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
service_app = typer.Typer(help="Run the service from the system's own service manager.", no_args_is_help=True)
app.add_typer(service_app, name="service")

WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", help="workspace folder (default: LAB_WORKSPACE, or found from here upwards)"),
]


@app.command()
def init(directory: Annotated[Path, typer.Argument(help="a new or existing folder")] = Path()) -> None:
    """Make a folder a lab workspace; overwrites nothing."""
    from lab_mcp.initialise import init as initialise
    from lab_mcp.initialise import text

    print(text(initialise(directory)))


@app.command()
def mcp(workspace: WorkspaceOption = None) -> None:
    """What Claude Code starts: MCP on standard input and output."""
    from lab_mcp import bridge

    raise typer.Exit(bridge.main(["--workspace", str(workspace)] if workspace else []))


@app.command()
def serve(
    workspace: WorkspaceOption = None,
    host: Annotated[str | None, typer.Option("--host", help="also serve other machines on this address")] = None,
    port: Annotated[int | None, typer.Option("--port", help="for --host (default 8443)")] = None,
    certificate: Annotated[str | None, typer.Option("--certificate", help="TLS certificate, PEM")] = None,
    key: Annotated[str | None, typer.Option("--key", help="its private key, PEM, readable by you alone")] = None,
) -> None:
    """Serve the workspace in the foreground (the other commands start the service by themselves).

    The options are those of [service] in lab.toml (remote_host, remote_port, certificate, key), where they last.
    """
    from lab_mcp import service

    found = discover(workspace)
    given = {"remote_host": host, "remote_port": port, "certificate": certificate, "key": key}
    # on a command line a path is meant from here, in lab.toml from the workspace
    given |= {name: str(Path(file).resolve()) for name, file in (("certificate", certificate), ("key", key)) if file}
    for name, value in given.items():
        if value is not None:  # the settings' own way of being overridden
            os.environ[f"LAB_SERVICE__{name.upper()}"] = str(value)
    if endpoint := connection.live_endpoint(found):
        raise LabError(
            f"this workspace is already served by process {endpoint.identity.pid}", fix="nothing, or `lab-mcp shutdown`"
        )
    service.run(found)


@app.command(hidden=True)
def wake(workspace: WorkspaceOption = None) -> None:
    """Start the service if it is not there: what a supervisor does when a run ends that others wait for."""
    asked_at = os.environ.get(ASKED_AT)
    connection.wake_service(discover(workspace), float(asked_at) if asked_at else time.time())


@app.command()
def status(workspace: WorkspaceOption = None) -> None:
    """Is the service there, and what does it do?"""
    found = discover(workspace)
    endpoint = connection.live_endpoint(found)
    if endpoint is None:
        console.print("not running (any command, or Claude Code, starts it)")
        raise typer.Exit(1)
    from lab_mcp.cli_client import call

    answer = call(found, "service_status", {})
    console.print(f"running: version {answer['version']}, process {answer['pid']}, {answer['url']}")
    console.print(f"since {answer['started_at']}")
    queue = ", ".join(f"{count} {state}" for state, count in answer["queue"].items()) or "no runs in progress"
    console.print(f"{queue}; {answer['to_document']} changes still to be documented")
    for neighbour in answer["neighbours"]:
        health = "answers" if neighbour["healthy"] else "odd"
        console.print(f"{neighbour['name']} on port {neighbour['port']} {health}: {escape(neighbour['detail'])}")
    outside = ", ".join(answer["leaves_the_premises"]) or "nothing"
    console.print(f"switched on that may talk to the outside: {outside}")


@app.command("open")
def open_pages(workspace: WorkspaceOption = None) -> None:
    """Print a link that opens the lab's pages in a browser: it works once, within ten minutes."""
    endpoint = connection.ensure_service(discover(workspace))
    answer = connection.request(endpoint, "POST", "/api/browser-link")
    print(endpoint.url + answer["path"])


@app.command()
def shutdown(workspace: WorkspaceOption = None) -> None:
    """End the service. Runs go on; the next command or conversation starts it again."""
    found = discover(workspace)
    endpoint = connection.live_endpoint(found)
    if endpoint is None:
        console.print("not running")
        return
    connection.request(endpoint, "POST", "/api/shutdown")
    deadline = time.monotonic() + 15
    while process.is_alive(endpoint.identity):
        if time.monotonic() > deadline:
            raise LabError(f"process {endpoint.identity.pid} has not ended within 15 s", fix="look at .lab/service.log")
        time.sleep(0.05)
    console.print("ended; runs in progress go on")


@app.command()
def doctor(workspace: WorkspaceOption = None) -> None:
    """What would bite: versions, drivers, space, file system, what may leave the premises."""
    from lab_mcp.doctor import examine

    found: Workspace | None
    try:
        found = discover(workspace)
    except LabError as error:
        console.print(f"[yellow]note[/] {escape(str(error))}")
        found = None
    colours = {"ok": "green", "note": "cyan", "warn": "yellow", "error": "red"}
    worst = 0
    for finding in examine(found):
        console.print(f"[{colours[finding.level]}]{finding.level:5}[/] {escape(finding.what)}")
        for text in (finding.why, finding.fix):
            if text:
                console.print(f"      {escape(text)}")
        worst = max(worst, finding.level == "error")
    raise typer.Exit(int(worst))


@service_app.command("install")
def service_install(
    workspace: WorkspaceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would be written")] = False,
) -> None:
    """Write a systemd user unit (Linux) or launchd agent (macOS) for this workspace."""
    from lab_mcp.service_unit import install

    for line in install(discover(workspace), dry_run=dry_run):
        print(line)


@app.command()
def demo(
    directory: Annotated[Path, typer.Argument(help="the workspace to make or reuse")] = Path("demo-lab"),
    seconds: Annotated[float, typer.Option(min=5, help="length of the training run")] = 45,
) -> None:
    """See the lab at work: trains, watches, and shows what it leaves."""
    from lab_mcp import demo as demonstration

    demonstration.main(directory, seconds=seconds)


@app.command("shell-init")
def shell_init(shell: Annotated[str, typer.Argument(help="bash, zsh or fish")] = "bash") -> None:
    """Print aliases such as gpu-status and train-status: eval "$(lab-mcp shell-init bash)"."""
    from lab_mcp.shell_init import text

    print(text(shell))


def main() -> None:
    """Run the command line; a refusal is one message and exit code 2, never a traceback."""
    from lab_mcp import (
        cli_adopt,
        cli_campaign,
        cli_clean,
        cli_install,
        cli_memory,
        cli_models,
        cli_rag,
        cli_results,
        cli_runs,
        cli_simulate,
        cli_sources,
        cli_top,
    )

    app.command()(cli_install.install)
    cli_runs.register(app)
    cli_memory.register(app)
    cli_rag.register(app)
    cli_sources.register(app)
    cli_campaign.register(app)
    cli_adopt.register(app)
    cli_results.register(app)
    cli_models.register(app)
    cli_clean.register(app)
    app.command("simulate")(cli_simulate.simulate_command)
    app.command()(cli_top.top)
    try:
        app(prog_name="lab-mcp")
    except LabError as error:
        Console(stderr=True, highlight=False).print(f"[red]lab-mcp:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has gone (`| head`): nothing more to say
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
