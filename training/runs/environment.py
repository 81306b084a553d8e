"""What a job's environment holds: the machine's, what the user lets pass (`runs.environment`), the run's own additions.

The service runs with a fixed list of variables. Those of its starter that match `runs.environment` are handed on from
keeper to service to supervisor, and given to users' scripts alone; run.json has their names, never their values.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from workspace.interpreter import ALLOWED_VARIABLES


def job_environment(
    present: Mapping[str, str], passed: Collection[str], additions: Mapping[str, str]
) -> dict[str, str]:
    """The allowed part of `present` and the variables named in `passed`; never our own LAB_ ones; plus `additions`."""
    kept = {n: v for n, v in present.items() if n in ALLOWED_VARIABLES or (n in passed and not n.startswith("LAB_"))}
    return kept | dict(additions)
