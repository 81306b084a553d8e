"""LaTeX source and Jupyter notebooks as text."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rag.documents import files, jupyter, latex
from rag.documents.document import Document, Unreadable

PAPER = r"""
% \title{A title that was commented out}
\documentclass[11pt]{article}
\newcommand{\model}{TinyGPT}
\title{Warm-up for \model\ and its \emph{kin}}
\author{Ann Smith\thanks{Equal work.} \and Bob Jones}
\date{March 2021}
\begin{document}
\maketitle
\begin{abstract}
We study warm-up. It helps % how much?
a lot.
\end{abstract}
\section{Introduction}\label{sec:intro}
As \citet[p.~3]{vaswani2017} shows in \S\ref{sec:intro}, $\alpha^2 \le \frac{a}{b}$ is 10\% better, Schr\"odinger says.
% a line that is only a comment

A second paragraph. \iffalse Never shown. \fi
\input{parts/method}
\subsection*{Data}
\begin{equation}\label{eq:1} \mathcal{L} = \sum_{i} \log p(x_i \mid \theta) \end{equation}
\begin{tikzpicture} \draw (0,0) -- (1,1); \end{tikzpicture}
\begin{thebibliography}{9}\bibitem{x} A reference nobody searches for.\end{thebibliography}
\appendix
\section{Proofs}
They are trivial.
\end{document}
What stands behind the end.
"""


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "method.tex").write_text("\\section{Method}\nWe train \\model{} twice.\n\\input{main}\n")
    file = tmp_path / "main.tex"
    file.write_text(PAPER)
    return file


def test_sections_title_authors_and_mathematics(paper: Path) -> None:
    document = files.read(paper)
    assert document.details.title == "Warm-up for TinyGPT and its kin"
    assert (document.details.authors, document.details.date) == ("Ann Smith, Bob Jones", "2021")
    assert [(block.section, block.text) for block in document.blocks] == [
        ("Abstract", "We study warm-up. It helps a lot."),
        ("Introduction", "As [vaswani2017] shows in §[sec:intro], α^2 ≤a/b is 10% better, Schrödinger says."),
        ("Introduction", "A second paragraph."),
        ("Method", "We train TinyGPT twice."),
        ("Method > Data", "ℒ = ∑_ilog p(x_i |θ)"),
        ("Proofs", "They are trivial."),
    ]


def test_only_files_of_the_workspace_are_taken_in(tmp_path: Path) -> None:
    root = tmp_path / "lab"
    (root / "papers").mkdir(parents=True)
    (tmp_path / "secret.tex").write_text("the secret")
    (root / "papers" / "link.tex").symlink_to(tmp_path / "secret.tex")
    names = ["../../secret", str(tmp_path / "secret.tex"), "link", "/etc/passwd", "missing", "main", "a#b"]
    source = "\n".join(f"\\input{{{name}}}" for name in names)
    (root / "papers" / "main.tex").write_text(f"\\begin{{document}}Ours. {source} \\include{{more}}\\end{{document}}")
    (root / "papers" / "more.tex").write_text("More of ours.")
    joined, parts = latex.join(root / "papers" / "main.tex", root)
    assert [part.name for part in parts] == ["main.tex", "more.tex"]
    assert "secret" not in joined and "More of ours." in joined


def test_files_that_name_each_other_end_somewhere(tmp_path: Path) -> None:
    for n in range(20):
        (tmp_path / f"p{n}.tex").write_text(f"Part {n}. " + f"\\input{{p{(n + 1) % 20}}}" * 2)
    joined, parts = latex.join(tmp_path / "p0.tex", tmp_path)
    assert len(parts) <= latex.PARTS and len(joined) < 100_000


@pytest.mark.parametrize(
    "source",
    ["{" * 5000, "}" * 5000, "$" * 999, r"\begin{equation} x", r"\section{never closed", "\\" * 99, r"\title{" * 50],
)
def test_malformed_source_is_read_as_far_as_it_goes(tmp_path: Path, source: str) -> None:
    file = tmp_path / "bad.tex"
    file.write_text(
        f"\\begin{{document}}\nThe first paragraph stays.\n\n{source}\n\nThe last stays.\n\\end{{document}}"
    )
    text = " ".join(block.text for block in files.read(file).blocks)
    assert "The first paragraph stays." in text


def test_a_long_table_takes_no_long_time(tmp_path: Path) -> None:
    file = tmp_path / "table.tex"
    rows = "\n".join(f"{n} & $x_{{{n}}}$ & \\textbf{{{n * n}}} \\\\" for n in range(20_000))
    file.write_text(f"\\begin{{document}}\\begin{{tabular}}{{lll}}{rows}\\end{{tabular}}\\end{{document}}")
    started = time.process_time()
    assert "399960001" in " ".join(block.text for block in files.read(file).blocks)
    assert time.process_time() - started < 20


def notebook(cells: list[dict[str, Any]], **more: Any) -> bytes:
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells, **more}).encode()


def read_notebook(cells: list[dict[str, Any]]) -> Document:
    return jupyter.read(notebook(cells), "a.ipynb")


def test_a_notebook_gives_words_code_and_what_was_printed() -> None:
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["loss 1.25\n", "done"]},
        {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo=" * 99, "text/plain": ["<Figure>"]}},
        {
            "output_type": "error",
            "ename": "ValueError",
            "evalue": "\x1b[31mtoo large\x1b[0m",
            "traceback": ["x" * 9999],
        },
    ]
    document = read_notebook(
        [
            {"cell_type": "markdown", "source": ["# Warm-up study\n", "\n", "We compare."]},
            {"cell_type": "code", "source": "train(warmup=200)", "outputs": outputs},
            {"cell_type": "markdown", "source": "## Result\n\nIt helped."},
            {"cell_type": "raw", "source": "raw words"},
        ]
    )
    blocks = list(document.blocks)
    text = "\n".join(block.text for block in blocks)
    assert document.details.title == "Warm-up study"
    assert [block.section for block in blocks if block.text == "It helped."] == ["Result"]
    assert all(
        part in text for part in ("```python\ntrain(warmup=200)\n```", "loss 1.25\ndone", "<Figure>", "raw words")
    )
    assert "ValueError: too large" in text and "iVBOR" not in text and "xxxx" not in text


def test_what_a_cell_prints_is_bounded_and_marks_in_code_open_no_section() -> None:
    code = "text = '''\n```\n# not a heading\n```\n'''"
    cells = [
        {
            "cell_type": "code",
            "source": code,
            "outputs": [{"output_type": "stream", "text": "spam " * 100_000 + "end"}],
        },
        {"cell_type": "markdown", "source": "After."},
    ]
    blocks = list(read_notebook(cells).blocks)
    text = "\n".join(block.text for block in blocks)
    assert len(text) < 3_000 and "497,003" not in text and "characters left out" in text and "end" in text
    assert {block.section for block in blocks} == {""}


def test_the_older_format_is_read_as_well() -> None:
    cells = [
        {"cell_type": "heading", "level": 1, "source": ["Study"]},
        {"cell_type": "heading", "level": 2, "source": ["Setup"]},
        {"cell_type": "code", "input": ["x = 1"], "outputs": []},
    ]
    document = jupyter.read(json.dumps({"nbformat": 3, "worksheets": [{"cells": cells}]}).encode(), "a.ipynb")
    assert document.details.title == "Study"
    assert [(block.section, "x = 1" in block.text) for block in document.blocks] == [("Setup", True)]


@pytest.mark.parametrize("data", [b"{}", b"[]", b"null", b"{", b'{"cells": 3}', b"[" * 100_000])
def test_what_is_no_notebook_says_so(data: bytes) -> None:
    with pytest.raises(Unreadable, match="not a Jupyter notebook"):
        jupyter.read(data, "a.ipynb")
