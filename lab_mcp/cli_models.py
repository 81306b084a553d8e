"""What a run leaves to use: text from it (sample), a place for good (promote), its score on the audit text (audit)."""

from __future__ import annotations

import getpass
import statistics
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from lab_mcp.cli import WorkspaceOption
from lab_mcp.cli_adopt import experiment_of
from lab_mcp.cli_campaign import audit_campaign
from lab_mcp.terminal import console
from training import promote as promotion
from workspace import durable
from workspace.errors import Refused, unknown
from workspace.interpreter import python_command
from workspace.layout import Workspace, discover


def register(app: typer.Typer) -> None:
    for command in (sample, promote, audit):
        app.command()(command)


def sample(
    run: Annotated[str, typer.Argument(help="run id, or the name of a promoted model")],
    prompt: Annotated[str, typer.Option(help="text to go on from")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="how much text, at most")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time")] = 0.0,
    seed: Annotated[int, typer.Option(help="of the draw, above temperature 0")] = 0,
    workspace: WorkspaceOption = None,
) -> None:
    """Text from a run's newest checkpoint or a promoted model."""
    folder = _folder(discover(workspace), run)
    arguments = [str(folder), "--prompt", prompt, "--tokens", str(tokens), "--temperature", str(temperature)]
    arguments += ["--seed", str(seed), "--recipe-dir", str(folder / "recipe")]
    raise typer.Exit(subprocess.run(python_command("training.sample", *arguments), check=False).returncode)


def promote(
    run: Annotated[str, typer.Argument(help="run id")],
    name: Annotated[str, typer.Argument(help="name of the model; one that exists is never overwritten")],
    workspace: WorkspaceOption = None,
) -> None:
    """Keep a run's newest checkpoint as models/NAME, with where it came from."""
    found = discover(workspace)
    kept = promotion.promote(found, run, name, by=getpass.getuser())
    console.print(f"{escape(run)} is now {escape(found.relative(kept))}")
    console.print(f"try it: lab-mcp sample {escape(name)} --prompt ...")


def audit(
    what: Annotated[str, typer.Argument(help="a run, an experiment (its deciding runs), or a campaign (its best)")],
    anyway: Annotated[bool, typer.Option("--anyway", help="although its campaign is still deciding")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Score on the text no decision has seen. Every opening is recorded: look once, at the end."""
    from training.sealed import audit as sealed

    found = discover(workspace)
    if what.startswith("camp-"):
        audit_campaign(found, what)
        return
    if not anyway:
        refuse_while_deciding(found, what)
    runs = [what]
    if what.startswith("exp-"):
        runs = [score.run for score in experiment_of(found, what).decisive()]
        if not runs:
            raise Refused(f"{what} has no scores, so there is nothing to audit")
    scores = []
    for run in runs:
        record = sealed.audit(found, run, by=getpass.getuser())
        scores.append(float(record["val_bpb"]))
        console.print(f"{escape(run)} val_bpb {scores[-1]:.6f} on {record['bytes']:,} bytes of audit text")
    if len(scores) > 1:
        spread = f"SD {statistics.stdev(scores):.2g}"
        console.print(f"{escape(what)} val_bpb {statistics.fmean(scores):.6f}, mean of {len(scores)} runs, {spread}")
    openings = sealed.openings(found)
    console.print(f"opening {len(openings)} of this workspace's audit text; all are in .lab/{sealed.RECORDS}")


def refuse_while_deciding(workspace: Workspace, what: str) -> None:
    """Raises `Refused` for an experiment, or its run, of a campaign that has not ended: whoever has seen a score on
    the audit text decides by it."""

    def read(file: Path) -> dict[str, Any]:
        content: Any = durable.read_json(file)
        return content if isinstance(content, dict) else {}

    experiment = what if what.startswith("exp-") else read(workspace.run_dir(what) / "run.json").get("experiment")
    if not experiment:
        return
    campaign = read(workspace.experiment_dir(experiment) / "experiment.json").get("campaign")
    if campaign and read(workspace.experiments_dir / "campaigns" / campaign / "campaign.json").get("state") != "ended":
        raise Refused(
            f"{what} belongs to {campaign}, which has not ended: what is seen now decides what follows",
            fix=f"lab-mcp campaign stop {campaign}, or wait; lab-mcp audit {what} --anyway, if you know better",
        )


def _folder(workspace: Workspace, name: str) -> Path:
    for folder in (workspace.run_dir(name), workspace.models_dir / name):
        if folder.is_dir() and folder.parent.parent == workspace.root:
            return folder
    known = [path.name for parent in (workspace.runs_dir, workspace.models_dir) for path in parent.glob("[!.]*")]
    raise unknown("run or model", name, known)
