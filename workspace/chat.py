"""Asking a language model one question, over HTTP: OpenAI's chat API (which local servers speak, too) or Anthropic's.

The key is read from the environment variable a setting names, at the moment of asking; it is never kept, logged or
shown. The service sees only variables that begin with `LAB_`, so a key for it has such a name.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workspace import web
from workspace.errors import LabError, Refused, Unavailable
from workspace.secrets import MASK, mask

Api = Literal["openai", "anthropic"]
DEFAULT_URLS: dict[str, str] = {"anthropic": "https://api.anthropic.com", "openai": "http://127.0.0.1:11434/v1"}
ANTHROPIC_VERSION = "2023-06-01"
ANSWER_LIMIT = 16 << 20  # bytes
WORDS_OF_THE_SERVER = 300  # characters of its error that are shown


@dataclass(frozen=True)
class ChatModel:
    """Where a model answers. `url` is the base: `http://127.0.0.1:8080/v1`, `https://api.anthropic.com`."""

    url: str
    name: str
    api: Api = "openai"
    key_variable: str = ""  # the environment variable that holds the key; empty: none is sent
    timeout_s: float = 120.0


@dataclass(frozen=True)
class Message:
    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Reply:
    """`finished`: the model came to its end, and was not cut off at `max_tokens`. Tokens: None when not told."""

    text: str
    model: str  # as the server names it
    finished: bool
    input_tokens: int | None
    output_tokens: int | None
    seconds: float


def ask(
    model: ChatModel, messages: Sequence[Message], *, max_tokens: int = 1024, temperature: float | None = None
) -> Reply:
    """The model's answer to a conversation. Synchronous; tried again when the server is busy (`web.request`).

    Raises `Unavailable` when the key is not set or the server cannot be reached, `Refused` with the server's words
    when it does not take the request.
    """
    started = time.monotonic()
    path, headers, body = _request(model, messages, max_tokens, temperature)
    response = _send(model, path, headers, body)
    if response.status == 400 and b"max_completion_tokens" in response.body and "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")  # newer models of OpenAI take only this name
        response = _send(model, path, headers, body)
    if response.status >= 400:
        raise Refused(
            f"{web.host_of(model.url)} refuses the question ({response.status}): {_words(response, headers)}",
            fix="check URL, model and key in lab.toml",
        )
    try:
        read = _read_anthropic if model.api == "anthropic" else _read_openai
        return read(response.json(), model.name, time.monotonic() - started)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        odd = LabError(
            f"{web.host_of(model.url)} does not answer as the {model.api} API does",
            fix="check the URL and `api` in lab.toml",
        )
        odd.may_have_worked = True  # it did answer
        raise odd from error


def _key(model: ChatModel) -> str:
    key = os.environ.get(model.key_variable, "").strip() if model.key_variable else ""
    if model.key_variable and not key:
        raise Unavailable(
            f"the environment variable {model.key_variable} with the model's key is not set",
            fix=f"set {model.key_variable} where the lab is started (a key for the service begins with LAB_; "
            "`lab-mcp shutdown` first, so that it starts with it)",
        )
    if not key.isascii() or not key.isprintable():
        raise Refused(f"the key in {model.key_variable} holds characters no key has")
    return key


def _request(
    model: ChatModel, messages: Sequence[Message], max_tokens: int, temperature: float | None
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Path, headers and body of the request in the model's API."""
    key = _key(model)
    body: dict[str, Any] = {"model": model.name, "max_tokens": max_tokens}
    if temperature is not None:
        body["temperature"] = temperature
    if model.api == "anthropic":
        system = "\n\n".join(message.text for message in messages if message.role == "system")
        body["messages"] = [{"role": m.role, "content": m.text} for m in messages if m.role != "system"]
        headers = {"anthropic-version": ANTHROPIC_VERSION} | ({"x-api-key": key} if key else {})
        return "/v1/messages", headers, body | ({"system": system} if system else {})
    body["messages"] = [{"role": message.role, "content": message.text} for message in messages]
    return "/chat/completions", {"Authorization": f"Bearer {key}"} if key else {}, body


def _send(model: ChatModel, path: str, headers: dict[str, str], body: dict[str, Any]) -> web.Response:
    base = model.url.rstrip("/")
    if model.api == "anthropic":
        base = base.removesuffix("/v1")
    return web.request("POST", base + path, headers=headers, body=body, timeout_s=model.timeout_s, limit=ANSWER_LIMIT)


def _words(response: web.Response, headers: dict[str, str]) -> str:
    """What the server says is wrong, without the key should it repeat it."""
    text = response.body.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):  # a proxy's page, or nothing: shown as it is
        content = response.json()
        error = content.get("error", content) if isinstance(content, dict) else content
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    for value in headers.values():
        secret = value.removeprefix("Bearer ")
        text = text.replace(secret, MASK) if len(secret) >= 8 and secret != ANTHROPIC_VERSION else text
    return mask(" ".join(text.split()))[:WORDS_OF_THE_SERVER] or "without a word"


def _read_openai(content: dict[str, Any], name: str, seconds: float) -> Reply:
    choice, usage = content["choices"][0], content.get("usage") or {}
    text = choice["message"].get("content") or ""
    if isinstance(text, list):
        text = "".join(part.get("text", "") for part in text)
    finished = choice.get("finish_reason") in ("stop", None)
    tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return Reply(str(text), str(content.get("model") or name), finished, *tokens, seconds=seconds)


def _read_anthropic(content: dict[str, Any], name: str, seconds: float) -> Reply:
    text = "".join(block["text"] for block in content["content"] if block["type"] == "text")
    usage = content.get("usage") or {}
    given = [usage.get(f"{kind}input_tokens") for kind in ("", "cache_creation_", "cache_read_")]
    read = None if given[0] is None else sum(number or 0 for number in given)
    finished = content.get("stop_reason") in ("end_turn", "stop_sequence", None)
    return Reply(text, str(content.get("model") or name), finished, read, usage.get("output_tokens"), seconds)
