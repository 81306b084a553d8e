"""How often chance is kept: 2,000 simulated campaigns per noise and drift, beside the rules of other projects.

Takes about half an hour on two cores. `--rows FILE` takes the rows of an earlier `lab-mcp simulate --json` instead.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from report import write_section

from experiments.simulation import DRIFTS, NOISES, PLANTED, PROPOSALS
from lab_mcp.cli_simulate import cells, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--campaigns", type=int, default=2000)
    parser.add_argument("--rows", type=Path)
    options = parser.parse_args()
    rows = (
        json.loads(options.rows.read_text()) if options.rows else table(options.campaigns, workers=os.cpu_count() or 1)
    )
    lines = [
        "| rule | noise | drift | campaigns | with a false keep | 95 % upper bound | false keeps each | 3 SD found "
        "| runs per null proposal |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['rule']} | {row['noise']} | {row['drift']} | {row['campaigns']} | {' | '.join(cells(row))} |"
        )
    text = (
        f"Simulated (the hardware does not matter), with the functions that judge real experiments. {PROPOSALS} "
        f"proposals a campaign, none with an effect; for the effects found, {PLANTED} of {PROPOSALS} improve by three "
        "noise SDs. A test run costs a fifth; baseline and control runs are counted. Noise: "
        + "; ".join(f"*{name}* {words}" for name, words in NOISES.items())
        + ". Drift: "
        + "; ".join(f"*{name}* {words}" for name, words in DRIFTS.items())
        + ".\n\n"
        + "\n".join(lines)
    )
    print(text)
    if options.write:
        write_section("Verdicts", "python benchmarks/verdicts.py --write", text)


if __name__ == "__main__":
    main()
