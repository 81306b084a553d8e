"""How often chance is kept: 2,000 simulated campaigns per noise and drift, beside the rules of other projects, and half
as many where a session is short or a change adds noise.

Takes about three quarters of an hour on two cores. `--rows` and `--scenario-rows` take rows of earlier runs instead.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from report import write_section

from experiments.simulation import DRIFTS, NOISES, PLANTED, PROPOSALS
from lab_mcp.cli_simulate import COLUMNS, SCENARIO_DRIFTS, Wanted, cells, rules, scenarios, table

SEED, SCENARIO_SEED = 1, 2  # the rule's constants were chosen on campaigns of seed 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--campaigns", type=int, default=2000)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--scenario-rows", type=Path)
    options = parser.parse_args()
    half = options.campaigns // 2
    usual: list[Wanted] = [("lab-mcp", "normal", drift, half) for drift in SCENARIO_DRIFTS]
    rows = given(options.rows) or table(rules(options.campaigns), SEED, os.cpu_count() or 1)
    others = given(options.scenario_rows) or table([*usual, *scenarios(half)], SCENARIO_SEED, os.cpu_count() or 1)
    text = (
        f"Simulated (the hardware does not matter), with the functions that judge real experiments. {PROPOSALS} "
        f"proposals a campaign, none with an effect; for the effects found, {PLANTED} of {PROPOSALS} improve by three "
        "noise SDs. A test run costs a fifth; baseline and control runs are counted. Noise: "
        + "; ".join(f"*{name}* {words}" for name, words in NOISES.items())
        + ". Drift: "
        + "; ".join(f"*{name}* {words}" for name, words in DRIFTS.items())
        + ". The constants of the rule were chosen on the first 200 campaigns of each row.\n\n"
        + lines(rows)
        + "\n\nOther campaigns, which nothing was chosen on. A session is the runs that tell where the parent stands "
        "(100 above; six hours of runs of half an hour are 12); the noise is learnt from the last 100 in every row. "
        "*Twice the variance*: every change, also one without effect, makes its runs scatter more.\n\n" + lines(others)
    )
    print(text)
    if options.write:
        write_section("Verdicts", "python benchmarks/verdicts.py --write", text)


def given(file: Path | None) -> list[dict[str, Any]]:
    return json.loads(file.read_text()) if file else []


def lines(rows: list[dict[str, Any]]) -> str:
    head = ["rule", "noise", "drift", "campaigns", *COLUMNS]
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * 3 + "---:|" * (len(head) - 3)]
    for row in rows:
        text.append(
            f"| {row['rule']} | {row['noise']} | {row['drift']} | {row['campaigns']} | {' | '.join(cells(row))} |"
        )
    return "\n".join(text)


if __name__ == "__main__":
    main()
