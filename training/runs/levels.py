"""Which lines of a log are errors or warnings: by the marks loggers and Python put at a line's beginning, and whole
tracebacks. A word somewhere in a line means nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

Level = Literal["error", "warning"]
_TIME = r"[\[(]?[\dTZ.,:/+\- ]{5,40}[\])]?\s*"


def _marked(words: str) -> str:
    """A logger's mark: at the line's beginning, behind a time, or between signs in its first part."""
    return (
        rf"^(?:{_TIME})?(?:{words})(?:[:\]\s]|$)|^.{{0,100}}?(?:[-|] ?(?:{words})\s*[-|:]|[\[(](?:{words})[\]|)])"
        rf"|^\S{{1,60}} (?:{words}):"
    )


_ERROR = re.compile(
    _marked("ERROR|CRITICAL|FATAL|SEVERE")
    + r"|^(?:[\w./+\-]{1,60}: )?(?:[Ff]atal )?[Ee]rror: |^[Ff]atal: "  # gcc, git, programs by name
    r"|^[EF]\d{4} \d\d:\d\d|^\[[EF] \d|^Segmentation fault\b|^Fatal Python error: "  # absl and glog, tornado
)
_WARNING = re.compile(
    _marked("WARNING|WARN") + r"|^(?:[\w./+\-]{1,60}: )?[Ww]arning: |^W\d{4} \d\d:\d\d|^\[W \d"
    r"|^\S+:\d+: \w*Warning: |^\w+Warning: "  # Python's warnings
)
_RANK = re.compile(r"^\[rank\d+\]: ?")
_TRACEBACK = re.compile(r"^\s*(?:\+ )?(?:Exception Group )?Traceback \(most recent call last\):")
_FRAME = re.compile(r'^\s+File "[^"]*", line \d+')
_CHAIN = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
# what must stand somewhere for any line to be of a level: the cheap look before lines are taken apart
MARKS = {
    "error": re.compile(
        rb"ERROR|CRITICAL|FATAL|SEVERE|[Ee]rror: |atal: |Traceback|  File \"|^[EF]\d{4} |^\[[EF] |Segmentation|Fatal",
        re.MULTILINE,
    ),
    "warning": re.compile(
        rb"ERROR|CRITICAL|FATAL|SEVERE|[Ee]rror: |atal: |Traceback|  File \"|^[EFW]\d{4} |^\[[EFW] |Segmentation|Fatal"
        rb"|WARN|arning: ",
        re.MULTILINE,
    ),
}


def of_level(lines: Iterable[str], level: Level) -> Iterator[bool]:
    """For each line whether it is of `level` or above; a traceback is one from its first line to its exception's.

    Begun in the middle of a traceback, the next frame is recognised as one.
    """
    inside = False  # a traceback
    ended = False  # a traceback has just ended: blank lines and a chain's sentence may follow
    for line in lines:
        bare = _RANK.sub("", line)
        if _TRACEBACK.match(bare) or _FRAME.match(bare):
            inside, ended = True, False
            yield True
        elif inside:
            if not bare[:1].isspace() and bare:
                inside = False
                ended = True
            yield True
        elif ended and (bare in _CHAIN):
            yield True
        else:
            ended = ended and not bare.strip()
            yield _ERROR.match(bare) is not None or (level == "warning" and _WARNING.match(bare) is not None)
