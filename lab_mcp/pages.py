"""Pages for a browser: what has an address in the lab, as HTML. Only to look at; nothing here changes anything."""

from __future__ import annotations

import html
from collections.abc import Callable

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from lab_mcp.doors import COOKIE_S, ENTER, Doors, code_of
from sessions.export import html_page, rendered
from tools import resources
from tools.hardware import summary
from tools.lab import Lab
from training.runs.records import LIVE
from workspace.errors import LabError

HEADERS = {
    # a page is text: no script, no frame, nothing from elsewhere, no trace of its address with others
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
SCHEME = "lab://"


def routes(lab: Lab, doors: Doors) -> list[Route]:
    """GET /enter?code=..., GET / and GET /view/... for `lab://...`."""

    async def enter(request: Request) -> Response:
        value = doors.enter(code_of(request.scope["query_string"]))
        if value is None:
            words = "<h1>This link has been used or is too old</h1><p><code>lab-mcp open</code> makes a new one.</p>"
            return _page("Lab", words, 403)
        answer = RedirectResponse("/", 303, headers=HEADERS)
        answer.set_cookie(
            doors.cookie,
            value,
            max_age=int(COOKIE_S),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    async def home(request: Request) -> Response:
        return await _shown(lambda: ("Lab", _home(lab)))

    async def view(request: Request) -> Response:
        uri = SCHEME + request.path_params["path"]
        return await _shown(lambda: (uri, _view(lab, uri)))

    return [
        Route(ENTER, enter, methods=["GET"]),
        Route("/", home, methods=["GET"]),
        Route("/view/{path:path}", view, methods=["GET"]),
    ]


async def _shown(make: Callable[[], tuple[str, str]]) -> Response:
    try:
        title, body = await anyio.to_thread.run_sync(make)
    except LabError as error:
        return _page("Lab", f"<h1>Not there</h1><p>{html.escape(str(error))}</p><p><a href='/'>the lab</a></p>", 404)
    return _page(title, body, 200)


def _page(title: str, body: str, status: int) -> HTMLResponse:
    return HTMLResponse(html_page(title, body), status, headers=HEADERS)


def _home(lab: Lab) -> str:
    overview = lab.experiments.overview()
    live = lab.runs.list(states=LIVE, limit=20)
    parts = [f"<h1>{html.escape(lab.workspace.root.name)}</h1>", _paragraph(summary(lab.hardware.latest()))]
    best = f"Best: {overview.best.experiment}: {overview.best.sentence}" if overview.best else "Nothing was kept yet."
    parts.append(_paragraph(best))
    parts.append("<h2>Running and waiting</h2>")
    parts.append(
        _links([(f"runs/{r.id}", f"{r.id} {r.state} {r.name}") for r in live]) if live else _paragraph("nothing")
    )
    kinds = {"sessions": "Notebook", "campaigns": "Campaigns", "experiments": "Experiments", "runs": "Runs"}
    addresses = [(item.uri.removeprefix(SCHEME), f"{item.title}: {item.description}") for item in resources.listed(lab)]
    for kind, title in kinds.items():
        mine = [entry for entry in addresses if entry[0].startswith(f"{kind}/")]
        parts += [f"<h2>{title}, newest first</h2>", _links(mine) if mine else _paragraph("none yet")]
    rest = [entry for entry in addresses if "/" not in entry[0]]
    return "\n".join([*parts, "<h2>Documents</h2>", _links(rest)])


def _view(lab: Lab, uri: str) -> str:
    text, kind = resources.read(lab, uri)
    body = (
        rendered(text) if kind == resources.MARKDOWN else f"<h1>{html.escape(uri)}</h1><pre>{html.escape(text)}</pre>"
    )
    path = uri.removeprefix(SCHEME)
    is_run = path.startswith("runs/") and kind == resources.JSON
    log = f"<p><a href='/view/{html.escape(path)}/log'>its log</a></p>" if is_run else ""
    return f"<p><a href='/'>the lab</a></p>{body}{log}"


def _links(entries: list[tuple[str, str]]) -> str:
    items = (f'<li><a href="/view/{html.escape(path)}">{html.escape(text)}</a></li>' for path, text in entries)
    return f"<ul>{''.join(items)}</ul>"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"
