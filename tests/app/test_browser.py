"""A browser's way in: a link that works once, a cookie that only looks; and pages that bring nothing along."""

from __future__ import annotations

import http.client
from http.cookies import SimpleCookie

import pytest
from tests_support import service_pid

from lab_mcp import connection
from lab_mcp.doors import COOKIE_S, LINK_S, MOST_LINKS, Doors, code_of
from workspace.layout import Workspace

JOB = """
import json, os
with open(os.path.join(os.environ["LAB_RUN_DIR"], "metrics.jsonl"), "w") as file:
    for step, loss in enumerate([3.0, 2.0, 1.0], 1):
        print(json.dumps({"step": step, "loss": loss}), file=file)
print("<b>hello</b>")
"""


class Browser:
    """Keeps cookies, follows nothing by itself."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookies: dict[str, str] = {}

    def ask(self, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        link.request(method, path, headers={"Host": f"127.0.0.1:{self.port}", **headers})
        answer = link.getresponse()
        self.body = answer.read().decode()
        link.close()
        for header in answer.headers.get_all("set-cookie") or []:
            self.set = SimpleCookie(header)
            self.cookies |= {name: morsel.value for name, morsel in self.set.items()}
        return answer


@pytest.fixture
def endpoint(lab: Workspace) -> connection.Endpoint:
    return connection.ensure_service(lab)


@pytest.fixture
def inside(endpoint: connection.Endpoint, command) -> Browser:
    """A browser that opened the link."""
    browser = Browser(endpoint.port)
    url = command("open").stdout.strip()
    assert url.startswith(endpoint.url)
    answer = browser.ask("GET", url.removeprefix(endpoint.url))
    assert (answer.status, answer.headers["location"]) == (303, "/")
    return browser


def test_the_link_works_once_and_the_cookie_is_kept_from_scripts(inside: Browser, endpoint, command, lab) -> None:
    (morsel,) = inside.set.values()
    assert morsel["httponly"] and morsel["samesite"] == "strict" and morsel["path"] == "/"
    assert endpoint.token not in morsel.value
    assert inside.ask("GET", "/").status == 200
    assert lab.root.name in inside.body
    used = Browser(endpoint.port)
    path = command("open").stdout.strip().removeprefix(endpoint.url)
    assert used.ask("HEAD", path).status == 401, "a program that only tries the link does not use it up"
    assert used.ask("GET", path).status == 303
    assert Browser(endpoint.port).ask("GET", path).status == 403
    assert Browser(endpoint.port).ask("GET", "/enter?code=guess").status == 403
    assert Browser(endpoint.port).ask("GET", "/enter").status == 403


def test_the_cookie_only_looks(inside: Browser, endpoint, lab: Workspace) -> None:
    for method, path in [
        ("POST", "/api/tools/start_training"),
        ("POST", "/api/shutdown"),
        ("POST", "/api/browser-link"),
        ("POST", "/mcp"),
        ("GET", "/mcp"),
        ("GET", "/api/sessions"),
        ("POST", "/"),
        ("DELETE", "/view/program"),
    ]:
        assert inside.ask(method, path).status == 401, (method, path)
    assert inside.ask("GET", "/", Host="evil.example").status == 421
    assert inside.ask("GET", "/", Origin="http://evil.example").status == 403
    assert inside.ask("GET", "/", Origin="http://[").status == 403
    assert service_pid(lab)


def test_without_cookie_nothing_is_shown(endpoint) -> None:
    stranger = Browser(endpoint.port)
    for path in ("/", "/view/program", "/view/../api/sessions"):
        assert stranger.ask("GET", path).status == 401
    stranger.cookies = {f"lab-{endpoint.port}": "guess", "broken": 'a"b,;'}
    assert stranger.ask("GET", "/").status == 401


def test_pages_show_what_has_an_address_and_bring_no_script(inside: Browser, endpoint, lab: Workspace, command) -> None:
    lab.program_file.write_text("# Goal\n\n<script>alert(1)</script> [x](javascript:alert(1)) **bold**\n")
    (lab.root / "job.py").write_text(JOB)
    assert command("train", "--script", "job.py", "--name", "<i>name").returncode == 0
    assert command("wait", "run-0001").returncode == 0
    answer = inside.ask("GET", "/view/program")
    assert answer.status == 200 and "<strong>bold</strong>" in inside.body
    assert "<script>" not in inside.body and 'href="javascript' not in inside.body
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert inside.ask("GET", "/view/runs/run-0001/log").status == 200
    assert "&lt;b&gt;hello&lt;/b&gt;" in inside.body
    assert inside.ask("GET", "/view/runs/run-0001").status == 200
    assert "<polyline" in inside.body and "last 1, lowest 1" in inside.body, "the loss as a curve"
    assert "&lt;b&gt;hello" in inside.body and "<i>name" not in inside.body and "<script" not in inside.body
    assert inside.ask("GET", "/").status == 200
    assert "/view/runs/run-0001" in inside.body and "<i>name" not in inside.body
    assert 'class="verdict succeeded"' in inside.body
    assert inside.ask("GET", "/view/runs/run-9999").status == 404 and "run-0001" in inside.body
    assert endpoint.token not in inside.body


def test_the_table_of_results_says_what_it_leaves_out(inside: Browser, lab: Workspace) -> None:
    rows = "".join(f"{number:07x}\t0.9\t<i>keep\n" for number in range(2000))
    lab.results_file.write_text("commit\tval_bpb\tstatus\n" + rows)
    assert inside.ask("GET", "/view/results").status == 200
    assert "older rows left out; all are in results.tsv" in inside.body
    assert f"{1999:07x}" in inside.body and "<td>0000000" not in inside.body and "<i>" not in inside.body
    lab.results_file.write_text("")
    assert inside.ask("GET", "/view/results").status == 200 and "none yet" in inside.body


def test_links_and_cookies_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    doors = Doors("1")
    late = doors.link()
    now[0] += LINK_S + 1
    assert doors.enter(late.partition("=")[2]) is None
    value = doors.enter(code_of(doors.link().partition("?")[2].encode()))
    scope = {"type": "http", "method": "GET", "path": "/"}
    assert value and doors.open_to(scope, [f"a=b; lab-1={value}".encode()])
    now[0] += COOKIE_S + 1
    assert not doors.open_to(scope, [f"lab-1={value}".encode()])
    links = [doors.link() for _ in range(MOST_LINKS + 5)]
    assert doors.enter(links[0].partition("=")[2]) is None, "a flood of links ends with the newest"
    assert doors.enter(links[-1].partition("=")[2])
