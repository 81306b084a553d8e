"""Papers from arXiv: what a query finds, and the papers of given ids put into papers/ with their details in arxiv.bib.

arXiv asks for one connection at a time and three seconds between calls, and says that results change once a day:
https://info.arxiv.org/help/api/tou.html. An abstract is searchable as soon as it is in the bibliography.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode
from xml.etree import ElementTree

from rag.documents import bibliography
from rag.documents.document import clean, clean_title
from rag.sources.polite import Polite
from workspace import durable, web
from workspace.errors import LabError, NotFound, Refused, Unavailable
from workspace.layout import Workspace
from workspace.settings import Settings

INTERVAL_S = 3.0
KEEP_S = 24 * 3600.0
FEED_LIMIT = 8 << 20  # bytes
PDF_LIMIT = 200 << 20
TIMEOUT_S = 30.0
ATTEMPTS = 3
PATIENCE_S = 20.0  # a caller waits; arXiv's longer requests are told instead
MOST = 10  # papers of one call
AGENT = "lab-mcp (https://info.arxiv.org/help/api)"
BIBLIOGRAPHY = "arxiv.bib"
NEW_ID = r"\d{4}\.\d{4,5}"
OLD_ID = r"[a-z-]+(?:\.[A-Z]{2})?/\d{7}"
ID = re.compile(
    rf"(?:https?://(?:[a-z]+\.)?arxiv\.org/(?:abs|pdf)/|arxiv:)?({NEW_ID}|{OLD_ID})(?:v\d+)?(?:\.pdf)?", re.IGNORECASE
)
FIELD = re.compile(r"\b(?:ti|au|abs|co|jr|cat|rn|id|all):")
ATOM = "{http://www.w3.org/2005/Atom}"


@dataclass(frozen=True)
class Paper:
    """`id` is without version. `file` names the PDF in papers/, relative to the workspace, when it is there."""

    id: str
    title: str
    authors: tuple[str, ...]
    date: str  # YYYY-MM-DD of the first version
    abstract: str
    categories: tuple[str, ...]
    file: str = ""
    problem: str = ""  # why the PDF is not there


class Arxiv:
    """Raises `Refused` from every method while it is switched off, `Unavailable` when arXiv cannot be reached."""

    def __init__(self, workspace: Workspace, settings: Settings) -> None:
        self.workspace = workspace
        self.url = settings.search.arxiv_url.rstrip("/")
        self._on = settings.network.arxiv
        self._polite = Polite(workspace, "arxiv", INTERVAL_S, KEEP_S)

    def fetch(self, wanted: str) -> list[Paper]:
        """For ids (or arXiv URLs), separated by commas or spaces: these papers with their PDFs. For anything else:
        the papers a query finds, without PDFs. All of them are in papers/arxiv.bib afterwards."""
        if not self._on:
            raise Refused(
                "arXiv is switched off: nothing is fetched from outside",
                valid="[network] arxiv = true in lab.toml, then `lab-mcp shutdown`",
                fix="put the PDF into papers/ yourself, then rag_index",
            )
        ids = ids_in(wanted)
        if not wanted.strip() or len(wanted) > 500 or len(ids) > MOST:
            raise Refused("nothing, or too much, to fetch from arXiv", valid=f"up to {MOST} ids, or a few words")
        found = self._listed({"id_list": ",".join(ids)} if ids else {"search_query": _query(wanted)})
        if ids:
            if missing := [id for id in ids if id not in {paper.id for paper in found}]:
                raise NotFound(f"arXiv has no {', '.join(missing)}", valid="ids such as 1706.03762")
            found = [self._with_pdf(paper) for paper in found]
        if found:
            self._write(found)
        return found

    def _listed(self, asked: dict[str, str]) -> list[Paper]:
        question = urlencode({**asked, "start": 0, "max_results": MOST})
        url = f"{self.url}/api/query?{question}"
        feed = self._polite.cached(url, lambda: self._get(url, FEED_LIMIT, read_feed))
        return [self._known(paper) for paper in read_feed(feed)]

    def _get(self, url: str, limit: int, check: Callable[[bytes], object]) -> bytes:
        """Raises `Unavailable` for what cannot be reached, and for an answer that `check` does not take."""
        try:
            with self._polite.turn() as wait:
                answer = web.request(
                    "GET",
                    url,
                    headers={"User-Agent": AGENT},
                    timeout_s=TIMEOUT_S,
                    limit=limit,
                    attempts=ATTEMPTS,
                    patience_s=PATIENCE_S,
                    follow=True,
                    before=wait,
                )
        except Unavailable as error:
            raise Unavailable(f"arXiv is offline from here: {error.problem}", fix=error.fix) from error
        if answer.status >= 400:
            raise Unavailable(f"arXiv answers {answer.status}", fix="try again later")
        check(answer.body)
        return answer.body

    def _with_pdf(self, paper: Paper) -> Paper:
        """The paper with its PDF in papers/; where that cannot be had, with the reason."""
        if paper.file:
            return paper
        try:
            content = self._get(f"{self.url}/pdf/{paper.id}", PDF_LIMIT, check_pdf)
        except LabError as error:
            return replace(paper, problem=error.problem)
        path = self.workspace.papers_dir / f"{_name(paper.id)}.pdf"
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(path, content)
        return self._known(paper)

    def _known(self, paper: Paper) -> Paper:
        path = self.workspace.papers_dir / f"{_name(paper.id)}.pdf"
        return replace(paper, file=self.workspace.relative(path)) if path.is_file() else paper

    def _write(self, papers: Sequence[Paper]) -> None:
        """Add what is not there yet to papers/arxiv.bib; entries a person has changed stay as they are."""
        file = self.workspace.papers_dir / BIBLIOGRAPHY
        with self._polite.turn():
            text = file.read_text(encoding="utf-8") if file.exists() else ""
            known = {entry.key for entry in bibliography.parse(text)}
            new = [_bibtex(paper) for paper in papers if _key(paper.id) not in known]
            if new:
                file.parent.mkdir(parents=True, exist_ok=True)
                durable.write_text(file, "\n\n".join([*([text.rstrip()] if text.strip() else []), *new]) + "\n")


def ids_in(wanted: str) -> list[str]:
    """The arXiv ids of a text that consists of nothing else; empty for a query."""
    parts = [part for part in re.split(r"[\s,;]+", wanted) if part]
    found = [ID.fullmatch(part) for part in parts]
    return [_plain(match.group(1)) for match in found if match] if parts and all(found) else []


def _plain(id: str) -> str:
    """An id as arXiv answers it: one of before 2007 without its subject class (`math/0211159` for `math.DG/...`)."""
    archive, slash, number = id.partition("/")
    return f"{archive.partition('.')[0].lower()}/{number}" if slash else id


def _query(words: str) -> str:
    """Words that must all occur, unless the question is in arXiv's own language (`ti:attention AND au:vaswani`)."""
    if FIELD.search(words):
        return words
    return " AND ".join(f"all:{word}" for word in re.findall(r"\w[\w-]*", words)[:20])


def read_feed(feed: bytes) -> list[Paper]:
    """The papers of an Atom feed. Raises `Unavailable` for what is none, `Refused` with arXiv's words for an error."""
    try:
        if b"<!DOCTYPE" in feed[:2000] or b"<!ENTITY" in feed:
            raise ElementTree.ParseError("a feed defines no entities")
        root = ElementTree.fromstring(feed)
    except ElementTree.ParseError as error:
        raise Unavailable("what answers for arXiv sends no Atom feed", fix="check [search] arxiv_url") from error
    papers = []
    for entry in root.iter(f"{ATOM}entry"):
        link, title = _text(entry, "id"), clean_title(_text(entry, "title"))
        if "/api/errors" in link:
            raise Refused(f"arXiv refuses the question: {clean_title(_text(entry, 'summary'))}")
        match = re.search(rf"/abs/({NEW_ID}|{OLD_ID})", link)
        if match is None or not title:
            continue  # an id that does not exist is answered with an empty entry
        names = [clean_title(_text(author, "name")) for author in entry.iter(f"{ATOM}author")]
        terms = [category.get("term", "") for category in entry.iter(f"{ATOM}category")]
        abstract = " ".join(clean(_text(entry, "summary")).split())
        day = _text(entry, "published")[:10]
        papers.append(Paper(_plain(match.group(1)), title, tuple(names), day, abstract, tuple(filter(None, terms))))
    return papers


def _text(element: ElementTree.Element, name: str) -> str:
    return element.findtext(f"{ATOM}{name}", "").strip()


def check_pdf(content: bytes) -> None:
    """Raises `Unavailable` unless it is a whole PDF."""
    if not content.startswith(b"%PDF"):
        raise Unavailable("arXiv sent no PDF", fix="try again later")
    if b"%%EOF" not in content[-2048:]:
        raise Unavailable("the PDF from arXiv is not complete", fix="try again later")


def _name(id: str) -> str:
    return id.replace("/", "-")


def _key(id: str) -> str:
    return f"arXiv-{_name(id)}"


def _bibtex(paper: Paper) -> str:
    def plain(text: str) -> str:
        return re.sub(r"[{}\\]", "", text)

    fields = {
        "title": f"{{{plain(paper.title)}}}",
        "author": plain(" and ".join(paper.authors)),
        "year": paper.date[:4],
        "date": paper.date,
        "eprint": paper.id,
        "archivePrefix": "arXiv",
        "keywords": ", ".join(paper.categories),
        "file": f"{_name(paper.id)}.pdf",
        "abstract": plain(paper.abstract),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@misc{{{_key(paper.id)},", *lines, "}"])
