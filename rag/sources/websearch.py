"""A web search by the configured provider: titles, addresses and a few words each. Pages themselves are not fetched."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from rag.documents.document import clean, clean_title
from rag.sources.polite import Polite
from workspace import web
from workspace.errors import Refused, Unavailable
from workspace.layout import Workspace
from workspace.settings import Settings

BRAVE = "https://api.search.brave.com"
INTERVAL_S = 1.0
KEEP_S = 3600.0
TIMEOUT_S = 15.0
ATTEMPTS = 2
PATIENCE_S = 10.0
ANSWER_LIMIT = 4 << 20  # bytes
LONGEST_QUERY = 400  # characters; what Brave takes
SNIPPET_LIMIT = 300  # characters


@dataclass(frozen=True)
class Found:
    """One result; every text of it is the provider's, cleaned: data, not instructions."""

    title: str
    url: str
    snippet: str
    date: str = ""


class WebSearch:
    """Raises `Refused` while no provider is configured, `Unavailable` when it cannot be reached."""

    def __init__(self, workspace: Workspace, settings: Settings) -> None:
        self._settings = settings.search
        self._polite = Polite(workspace, "websearch", INTERVAL_S, KEEP_S)

    def search(self, query: str, limit: int = 8) -> list[Found]:
        """Up to `limit` results, best first."""
        provider = self._settings.provider
        if provider == "off":
            raise Refused(
                "web search is switched off", valid='[search] provider = "searxng" (with url) or "brave" in lab.toml'
            )
        query = " ".join(query.split())
        if not query or len(query) > LONGEST_QUERY:
            raise Refused("nothing, or too much, to search the web for", valid=f"up to {LONGEST_QUERY} characters")
        url, headers = self._question(query)
        content = self._polite.cached(url, lambda: self._get(url, headers))
        read = _searxng if provider == "searxng" else _brave
        return [found for found in read(web.Response(200, {}, content).json()) if found is not None][:limit]

    def _question(self, query: str) -> tuple[str, dict[str, str]]:
        base = self._settings.url.rstrip("/")
        key = self._key()
        if self._settings.provider == "searxng":
            if not base:
                raise Refused("[search] url is empty", valid="the address of your SearXNG, e.g. http://127.0.0.1:8888")
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            return f"{base}/search?{urlencode({'q': query, 'format': 'json'})}", headers
        headers = {"X-Subscription-Token": key, "Accept": "application/json"}
        return f"{base or BRAVE}/res/v1/web/search?{urlencode({'q': query, 'count': 20})}", headers

    def _key(self) -> str:
        variable = self._settings.key_variable
        key = os.environ.get(variable, "").strip() if variable else ""
        if variable and not (key and key.isascii() and key.isprintable()):
            raise Unavailable(
                f"the environment variable {variable} with the web search's key is not set, or holds no key",
                fix=f"set {variable}, `lab-mcp shutdown`, and start the lab again",
            )
        return key

    def _get(self, url: str, headers: Mapping[str, str]) -> bytes:
        """Raises `Unavailable` also for an answer in another form."""
        try:
            answer = web.request(
                "GET",
                url,
                headers=headers,
                timeout_s=TIMEOUT_S,
                limit=ANSWER_LIMIT,
                attempts=ATTEMPTS,
                patience_s=PATIENCE_S,
                before=self._wait,
            )
        except Unavailable as error:
            raise Unavailable(f"the web search is offline: {error.problem}", fix=error.fix) from error
        if answer.status >= 400:
            raise Unavailable(
                f"the web search refuses the question ({answer.status})",
                fix="check [search] in lab.toml; SearXNG must allow the json format",
            )
        try:
            read = _searxng if self._settings.provider == "searxng" else _brave
            read(answer.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unavailable(
                f"what answers at {web.host_of(url)} is no {self._settings.provider}", fix="check [search] url"
            ) from error
        return answer.body

    def _wait(self) -> None:
        with self._polite.turn() as wait:
            wait()


def _searxng(content: Any) -> list[Found | None]:
    return [
        _found(item.get("title"), item.get("url"), item.get("content"), item.get("publishedDate"))
        for item in content["results"]
    ]


def _brave(content: Any) -> list[Found | None]:
    return [
        _found(item.get("title"), item.get("url"), item.get("description"), item.get("page_age"))
        for item in (content.get("web") or {"results": []})["results"]
    ]


def _found(title: Any, url: Any, snippet: Any, date: Any) -> Found | None:
    """A result without markup and control characters; None for one whose address is not http(s)."""
    address = clean(str(url or ""))
    if urlsplit(address).scheme not in ("http", "https") or len(address) > 2000:
        return None
    words = " ".join(_plain(snippet).split())[:SNIPPET_LIMIT]
    day = re.match(r"\d{4}-\d{2}-\d{2}", str(date or ""))
    return Found(clean_title(_plain(title)) or address, address, words, day.group() if day else "")


def _plain(text: Any) -> str:
    return clean(html.unescape(re.sub(r"<[^>]{0,200}>", "", str(text or ""))))
