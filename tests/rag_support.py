"""For the tests of memory: small real PDF files written by hand, a workspace for papers, waiting."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from workspace.layout import Workspace


def pdf(pages: Sequence[Sequence[str]], *, title: str = "", trailer: str = "") -> bytes:
    """A PDF with one text line under the other on each page; the first line of the first page in large type."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    kids = []
    for number, lines in enumerate(pages):
        parts = ["BT", "/F1 10 Tf", "14 TL", "50 760 Td"]
        for n, line in enumerate(lines):
            size = 20 if number == 0 and n == 0 else 10
            escaped = line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
            parts += [f"/F1 {size} Tf", f"({escaped}) Tj", "T*"]
        stream = "\n".join([*parts, "ET"]) if lines else ""
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        content = len(objects)
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >>"
            f" /Contents {content} 0 R >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    info = ""
    if title:
        objects.append(f"<< /Title ({title}) >>")
        info = f" /Info {len(objects)} 0 R"
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n".encode("latin-1")
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    end = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R{info}{trailer} >>\nstartxref\n{len(body)}\n%%EOF\n"
    return body + (head + end).encode("latin-1")


def encrypted() -> bytes:
    """A PDF whose trailer demands a password nobody has."""
    key = "<" + "5A" * 32 + ">"
    rules = f"<< /Filter /Standard /V 1 /R 2 /O {key} /U {key} /P -4 >>"
    return pdf([["Secret results"]], trailer=f" /Encrypt {rules} /ID [<00> <00>]")


def peak_memory(pid: int | str = "self") -> int:
    """The most memory a process had resident since it was started, in bytes. (`ru_maxrss` survives exec on Linux: a
    child of a large process would begin with its parent's.)"""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found.group(1)) * 1024


def forget_peak() -> None:
    """Let this process's peak begin anew at what it has now."""
    if sys.platform != "darwin":
        Path("/proc/self/clear_refs").write_text("5")


def make_workspace(root: Path) -> Workspace:
    (root / "papers").mkdir(parents=True)
    (root / "lab.toml").write_text("")
    workspace = Workspace(root.resolve())
    workspace.create_folders()
    return workspace


def eventually(check: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until `check()` is true; the limit is generous, machines are slow."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.02)
