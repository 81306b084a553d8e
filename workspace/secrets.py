"""Masking of secrets in text that is about to be kept or shown: logs, journals, notes. Standard library only.

What is masked: tokens of well-known shape (Hugging Face, OpenAI, Anthropic, AWS, GitHub, GitLab, Slack, Google, npm,
PyPI, JSON web tokens), bearer tokens, values after `password=`, `token:`, `--api-key` and their kin, passwords in
URLs, PEM private keys, and what stands in this process's own variables of such names. Masking twice changes nothing
more. Every pattern runs in linear time, so a whole log can be passed. A secret without a telling shape or name cannot
be recognised.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Any

MASK = "***"
OWN_CHARACTERS = 12  # a shorter value of a variable could be any word

_PEM = re.compile(
    r"-----BEGIN ([A-Z0-9 ]{0,40})PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL
)
_START = r"(?<![A-Za-z0-9])"
_SHAPES = re.compile(
    _START + r"(?:"
    r"(?P<prefix>hf_|gh[pousr]_|github_pat_|glpat-|npm_|pypi-|xox[abeoprs]-|AIza)[A-Za-z0-9_\-]{16,}"
    r"|(?P<sk>sk-)(?=[A-Za-z0-9_\-]{0,64}\d)[A-Za-z0-9_\-]{16,}"
    r"|(?P<aws>A(?:KIA|SIA))[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|(?P<jwt>eyJ)[A-Za-z0-9_\-]{8,4000}\.[A-Za-z0-9_\-]{8,4000}\.[A-Za-z0-9_\-]{0,4000}"
    r")"
)
_AUTHORIZATION = re.compile(r"(?i)(\bauthorization[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?:bearer|basic|token)\s+)[^\s\"',;]+")
_BEARER = re.compile(r"(?i)(\bbearer\s+)(?=[A-Za-z0-9._~+/=\-]{0,64}[\d._~+/=]|[A-Za-z\-]{20})[A-Za-z0-9._~+/=\-]{8,}")
_URL = re.compile(r"(?<=://)([^\s/:@\"']{0,256}):([^\s/@\"']{1,512})@")

# a quoted value to its closing quote, or a bare one to the next blank or separator
_VALUE = r"(?:\"(?P<dq>(?:[^\"\\\n]|\\.)*)\"|'(?P<sq>(?:[^'\\\n]|\\.)*)'|(?P<bare>[^\s\"'&,;}\])<>]+))"
_NAME = (
    r"pass(?:word|wd|phrase)|secret(?:[_-]?(?:access[_-]?)?key)?"
    r"|api[_-]?key|access[_-]?key|private[_-]?key|credentials?"
)
# a tokenizer's pad_token and "bits per token: 1.2" are no secrets
_PLAIN = "pad bos eos unk sep cls mask special per max min next last first".split()
_TOKEN = "token" + "".join(f"(?<!{word}{gap}token)" for word in _PLAIN for gap in "_ -")  # checked where it stands only
_NAMED = re.compile(rf"(?i)(?P<name>{_NAME}|{_TOKEN})(?P<sign>[\"']?\s{{0,4}}(?:=|:(?!//))\s{{0,4}})(?:{_VALUE})")
_FLAG = re.compile(
    rf"(?i)(?P<name>--?(?:[a-z0-9]{{1,20}}[_-]){{0,3}}(?:{_NAME}|token))(?P<sign>\s{{1,4}})(?!-)(?:{_VALUE})"
)
_SECRET_KEY = re.compile(rf"(?i)(?:{_NAME}|{_TOKEN}|^authorization)$")
# What must stand somewhere in a text for a pattern to match it. Most lines of a log hold none of it, and looking for a
# plain string takes a hundredth of the time. The letters are those a pattern without case takes for i, k and s.
_PREFIXES = "hf_ ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ glpat- npm_ pypi- xox AIza sk- AKIA ASIA eyJ".split()
_NAMES = ("token", "pass", "secret", "key", "credential")
_FOREIGN_CASE = "\u0130\u0131\u017f\u212a"
_NUMBER = re.compile(r"[+\-]?\d+(?:\.\d+)?(?:[eE][+\-]?\d+)?%?")


def mask(text: str) -> str:
    """`text` with every recognised secret replaced by `***` (a telling prefix such as `hf_` stays)."""
    for value in _own():
        text = text.replace(value, MASK)
    if not text.isascii() and any(letter in text for letter in _FOREIGN_CASE):
        return _mask(text)
    lower = text.lower()
    return _mask(
        text,
        pem="PRIVATE KEY-----" in text,
        shapes=any(prefix in text for prefix in _PREFIXES),
        bearer="bearer" in lower or "authorization" in lower,
        url="://" in text and "@" in text,
        named=any(name in lower for name in _NAMES),
    )


def _mask(
    text: str, *, pem: bool = True, shapes: bool = True, bearer: bool = True, url: bool = True, named: bool = True
) -> str:
    """`mask` with the patterns that are true; a mask never makes a text that another pattern matches."""
    if pem:
        text = _PEM.sub(lambda m: f"-----BEGIN {m[1]}PRIVATE KEY-----{MASK}-----END {m[1]}PRIVATE KEY-----", text)
    if shapes:
        text = _SHAPES.sub(lambda m: f"{m['prefix'] or m['sk'] or m['aws'] or m['jwt']}{MASK}", text)
    if bearer:
        text = _AUTHORIZATION.sub(rf"\g<1>{MASK}", text)
        text = _BEARER.sub(rf"\g<1>{MASK}", text)
    if url:
        text = _URL.sub(rf"\g<1>:{MASK}@", text)
    if named:
        text = _NAMED.sub(_mask_named, text)
        text = _FLAG.sub(_mask_named, text)
    return text


@functools.cache
def _own() -> tuple[str, ...]:
    """The secrets of this process's environment (`runs.environment` lets a user's tokens pass to their scripts)."""
    values = (value for name, value in os.environ.items() if is_secret_name(name))
    return tuple(sorted({value for value in values if len(value) >= OWN_CHARACTERS}, key=len, reverse=True))


def mask_value(value: Any) -> Any:
    """A JSON-like value with secrets masked in every string; the whole value under a key such as `api_key`."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {
            key: MASK if isinstance(item, str) and item and is_secret_name(str(key)) else mask_value(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [mask_value(item) for item in value]
    return value


def is_secret_name(name: str) -> bool:
    """True for the name of a setting or variable whose value is a secret: `HF_TOKEN`, `wandb_api_key`, `password`."""
    return _SECRET_KEY.search(name) is not None


def _mask_named(match: re.Match[str]) -> str:
    name, sign = match["name"], match["sign"]
    if match["bare"] is not None:
        if not _looks_secret(name, sign, match["bare"]):
            return match[0]
        return f"{name}{sign}{MASK}"
    quote = '"' if match["dq"] is not None else "'"
    value = match["dq"] if match["dq"] is not None else match["sq"]
    return f"{name}{sign}{quote}{MASK if value else ''}{quote}"


def _looks_secret(name: str, sign: str, value: str) -> bool:
    """Prose says "the secret: patience" and "token: 512"; only a bare value that could be a secret is masked."""
    if value.lower() in ("none", "null", "true", "false", "str", "string"):
        return False
    if "pass" in name.lower():
        return True
    if _NUMBER.fullmatch(value):
        return False
    if sign.endswith("=") or name.startswith("-"):
        return True
    return any(c.isdigit() for c in value) or len(value) >= 20
