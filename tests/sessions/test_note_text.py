"""Whatever a note contains, the page around it keeps its structure."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sessions.text import clean, closing_lines, code, cut, fit, heading, inline, slug

PIECES = [
    *("# a", "## b", "### c", "```", "~~~", "````py", "<div>", "<!--", "-->", "- x", "  - y", "    z", "> q", "---"),
    *(
        "===",
        "==",
        "| a | b |",
        "|---|---|",
        "word",
        "`a<b`",
        "<b>bold</b>",
        "a <i> b",
        "[x]: /url",
        "1. one",
        "   ```",
    ),
    *("`", "\\", "<https://a.b>", "***", "<script>", "<?php", "<![CDATA[", "> ```", "- ```", "- # h", "> # h", ""),
]
notes = st.lists(
    st.tuples(st.sampled_from(["", " ", "   ", "    ", "\t"]), st.sampled_from(PIECES) | st.text(max_size=12)),
    min_size=1,
    max_size=12,
).map(lambda lines: clean("\n".join(indent + piece for indent, piece in lines)))


def structure(text: str) -> list[tuple[str, str]]:
    """The paragraphs, and the headings of the page's own level, as a Markdown reader sees them."""
    found = []
    for opening, content in itertools.pairwise(MarkdownIt("commonmark").enable("table").parse(text)):
        assert opening.type != "html_block"
        if (
            opening.level == 0
            and opening.type in ("heading_open", "paragraph_open")
            and opening.tag in ("h1", "h2", "p")
        ):
            found.append((opening.tag, content.content))
    return found


@settings(max_examples=150, deadline=None)
@given(notes.filter(bool))
def test_no_note_can_break_the_page(text: str) -> None:
    page = "\n".join(["# Title", "", "## Results", "", *fit(text), "", "the end", "", "## Analysis", ""])
    found = structure(page)
    assert [item for item in found if item[0] != "p"] == [("h1", "Title"), ("h2", "Results"), ("h2", "Analysis")]
    assert found[-2:] == [("p", "the end"), ("h2", "Analysis")]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(alphabet="abc .,-()", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=6))
def test_plain_words_are_shown_as_they_are(lines: list[str]) -> None:
    text = clean("\n".join("w" + line for line in lines))
    assert "\n".join(fit(text)) == text


def test_headings_move_below_the_pages_own() -> None:
    assert fit("# A\n\n## B\n\ntext\n\n###### F") == ("### A", "", "#### B", "", "text", "", "###### F")
    assert fit("Title\n=====\ntext") == ("### Title", "text")
    assert fit("### fine already") == ("### fine already",)
    assert fit("```\n# a comment\n```") == ("```", "# a comment", "```")


def test_an_open_fence_is_closed_and_html_is_shown_as_text() -> None:
    assert fit("```python\nx = 1") == ("```python", "x = 1", "```")
    assert fit("a <b>bold</b> `x<y>` word") == ("a &lt;b>bold&lt;/b> `x<y>` word",)
    assert fit("x < y and 3<4") == ("x < y and 3<4",)
    assert fit("<details>\n\nhidden")[0] == "&lt;details>"


def test_what_cannot_be_tamed_is_shown_verbatim() -> None:
    wild = "- ```\n- # x\n<!-- `"
    shown = fit(wild)
    assert shown == tuple(wild.replace("<!--", "&lt;!--").split("\n")) or wild in "\n".join(shown)


def test_closing_lines() -> None:
    assert closing_lines("plain") == ()
    assert closing_lines("~~~~\ncode") == ("~~~~",)
    assert closing_lines("`````\n```") == ("`````",)


def test_clean_strips_controls_and_keeps_words() -> None:
    assert clean("\ufeff\r\n a\x00b\x1b[31m\r\nc\u202e\rd\ud800 \n\n") == " ab[31m\nc\nd "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Größe & Éclair!", "grosse-eclair"),
        ("", "session"),
        ("学习率", "session"),
        ("a" * 100, "session"),
        ("../../etc/passwd", "etc-passwd"),
        ("one two three four five six seven eight nine", "one-two-three-four-five-six-seven-eight"),
    ],
)
def test_slugs(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_small_forms() -> None:
    assert heading("## *Find* `x`\n\nmore") == "Find x"
    assert heading("- item") == "item" and heading("2. item") == "item" and heading("0.5 is better") == "0.5 is better"
    assert inline("a|b `c` [d](e) <f> snake_case _em_") == r"a\|b \`c\` \[d\](e) \<f> snake_case \_em\_"
    assert code("a`b|c") == r"``a`b\|c``" and code("") == ""
    assert cut("abcdef", 3) == "abc... (3 more characters)"
