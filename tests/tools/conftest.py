"""The lab's parts in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab_mcp import compose
from tools.lab import Lab
from workspace.layout import Workspace


@pytest.fixture
def opened(lab: Workspace) -> Iterator[Lab]:
    """The lab without a service."""
    parts = compose.build_lab(lab, {"pid": 0, "url": "", "started_at": "", "version": "0"})
    yield parts
    compose.stop(parts)
