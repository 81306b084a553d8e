"""What a tool is, and how a call of one is checked, run and answered. Nothing here knows a transport."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from workspace.errors import LabError, Refused, closest, unknown


class Arguments(BaseModel):
    """Base of every tool's arguments: an unknown name is refused, nothing is coerced silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, strict=True)


class Result(BaseModel):
    """Base of every tool's result: complete by itself, because Claude Code shows the model nothing else."""

    model_config = ConfigDict(extra="forbid")


A = TypeVar("A", bound=Arguments)
R = TypeVar("R", bound=Result)
Progress = Callable[[float, float | None, str], Awaitable[None]]


async def no_progress(done: float, total: float | None, text: str) -> None:
    """For callers that did not ask for progress."""


@dataclass(frozen=True)
class Caller:
    """Who calls: the conversation, a key that makes a repeated call harmless, where progress goes."""

    conversation: str
    key: str | None = None
    progress: Progress = field(default=no_progress, repr=False)


@dataclass(frozen=True)
class Tool(Generic[A, R]):
    """One tool. `example` is a valid call, shown in errors about arguments."""

    name: str
    title: str
    description: str
    arguments: type[A]
    result: type[R]
    run: Callable[[Any, A, Caller], Awaitable[R]]
    example: dict[str, Any]
    read_only: bool
    destructive: bool = False
    idempotent: bool = True
    open_world: bool = False
    only_looks: Callable[[A], bool] | None = None  # of a tool that changes things: is this call none that does?
    meta: dict[str, Any] | None = None

    def input_schema(self) -> dict[str, Any]:
        return compact(self.arguments.model_json_schema())

    def output_schema(self) -> dict[str, Any]:
        return compact(self.result.model_json_schema(mode="serialization"))

    def check(self, arguments: dict[str, Any]) -> A:
        """The arguments as their model. Raises `Refused` in words an assistant can act on."""
        try:
            return self.arguments.model_validate(arguments)
        except ValidationError as error:
            raise self._explain(error) from error

    def _explain(self, error: ValidationError) -> Refused:
        known = self.arguments.model_fields
        problems = []
        for item in error.errors(include_url=False, include_context=False)[:3]:
            name = ".".join(map(str, item["loc"])) or "the arguments"
            if item["type"] == "extra_forbidden":
                near = closest(name, known)
                problems.append(
                    f"there is no argument {name[:80]!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
                )
            elif item["type"] == "missing":
                problems.append(f"{name!r} is missing")
            else:
                given = json.dumps(item["input"], ensure_ascii=False, default=str)[:80]
                given = given.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be sent back
                problems.append(f"{name} = {given}: {_plain(item['msg'])}")
        return Refused(
            f"{self.name}: " + "; ".join(problems),
            valid=self._usage(),
            fix=f"for example {self.name}({json.dumps(self.example, ensure_ascii=False)})",
        )

    def _usage(self) -> str:
        parts = []
        for name, info in self.arguments.model_fields.items():
            parts.append(name if info.is_required() else f"{name}=optional")
        return "arguments " + ", ".join(parts) if parts else "no arguments"


def _plain(message: str) -> str:
    """pydantic's wording without its prefix for our own errors."""
    return message.removeprefix("Value error, ").rstrip(".")


class Tools:
    """The tools of the lab, by name, in a fixed order."""

    def __init__(self, tools: list[Tool[Any, Any]]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        assert len(self._tools) == len(tools), "two tools share a name"

    def __iter__(self) -> Any:
        return iter(self._tools.values())

    def __getitem__(self, name: str) -> Tool[Any, Any]:
        try:
            return self._tools[name]
        except KeyError:
            raise unknown("tool", name, self._tools) from None

    async def call(self, lab: Any, name: str, arguments: dict[str, Any] | None, caller: Caller) -> dict[str, Any]:
        """Check, run, record; the result as JSON-ready data.

        A call that changes something is answered from the record when its key was answered before, and is written
        into the session's journal when it was carried out. Raises `LabError`.
        """
        tool = self[name]
        if lab is None:
            raise no_lab()
        checked = tool.check(arguments or {})
        if tool.read_only or (tool.only_looks is not None and tool.only_looks(checked)):
            return _dump(await tool.run(lab, checked, caller))
        given = recorded(checked)
        caller = keyed(checked, caller)
        answer: dict[str, Any] = await lab.calls.once(
            tool.name, given, caller, lambda: _run(tool, lab, checked, caller)
        )
        return answer


def recorded(arguments: Arguments) -> dict[str, Any]:
    """What is written down of a call's arguments."""
    given = arguments.model_dump(mode="json", exclude_unset=True)
    given.pop("idempotency_key", None)
    return given


def keyed(arguments: Arguments, caller: Caller) -> Caller:
    """The caller with the key this call is recorded under: the one it names itself, or the bridge's."""
    own = getattr(arguments, "idempotency_key", None)
    return replace(caller, key=f"given:{own}") if own else caller


async def _run(tool: Tool[Any, Any], lab: Any, arguments: Any, caller: Caller) -> dict[str, Any]:
    return _dump(await tool.run(lab, arguments, caller))


def _dump(result: Result) -> dict[str, Any]:
    return result.model_dump(mode="json", exclude_none=True)


def no_lab() -> LabError:
    return Refused(
        "there is no lab here: neither this folder nor one above it has a lab.toml",
        fix="ask the user to run `lab-mcp init DIR` in a terminal and to start Claude Code in that folder",
    )


def compact(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema with what costs tokens and says nothing removed: titles, null alternatives, references."""
    definitions = schema.pop("$defs", {})

    def walk(node: Any, *, names: bool = False, element: bool = False) -> Any:
        if isinstance(node, list):
            return [walk(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            target = definitions[node["$ref"].rsplit("/", 1)[1]]
            return walk({**target, **{k: v for k, v in node.items() if k != "$ref"}})
        kept = {
            k: walk(v, names=k == "properties", element=k == "items" and not names)
            for k, v in node.items()
            if names or k != "title"
        }
        choices = kept.get("anyOf")
        # an absent field is left out of a result, but an element of a list that is null is there
        if not names and not element and isinstance(choices, list) and {"type": "null"} in choices:
            rest = [choice for choice in choices if choice != {"type": "null"}]
            del kept["anyOf"]
            kept = {**(rest[0] if len(rest) == 1 else {"anyOf": rest}), **kept}
            if kept.get("default", ...) is None:
                del kept["default"]
        return kept

    result: dict[str, Any] = walk(schema)
    result.pop("description", None)  # the tool's own description says it
    return result
