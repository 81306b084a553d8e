"""Pages for a browser: what has an address in the lab, as HTML. Only to look at; nothing here changes anything."""

from __future__ import annotations

import html
from collections.abc import Callable

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from experiments.report.style import STYLE
from lab_mcp import views
from lab_mcp.doors import COOKIE_S, ENTER, Doors, code_of
from tools.lab import Lab
from workspace.errors import LabError

HEADERS = {
    # a page is text: no script, no frame, nothing from elsewhere, no trace of its address with others
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


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
        return await _shown(lambda: (lab.workspace.root.name, views.home(lab)))

    async def view(request: Request) -> Response:
        uri = views.SCHEME + request.path_params["path"]
        return await _shown(lambda: (uri.removeprefix(views.SCHEME), views.view(lab, uri)))

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
    content = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}{views.STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
    return HTMLResponse(content, status, headers=HEADERS)
