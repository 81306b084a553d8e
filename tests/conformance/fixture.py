"""The application that the protocol's conformance suites ask for, built by the same factory as the lab's own server.

`python -P tests/conformance/fixture.py PORT`: the lab's server of a fresh workspace over HTTP, with the tools, prompts
and resources added to it that the suites prescribe. What is not theirs goes to the lab's own handlers.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import mcp.types as types
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import PromptsListChanged, ToolsListChanged

sys.path.insert(0, str(Path(__file__).parent))
import jobs

from lab_mcp import compose
from lab_mcp.initialise import init
from tools.handles import HANDLES
from tools.server import LabServer, build_server
from tools.tool import Tools
from workspace.layout import Workspace

Context = ServerRequestContext[Any]
Handler = Callable[[Context, Any], Awaitable[Any]]


def _png() -> str:
    """One red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


PNG = _png()
WAV = base64.b64encode(b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0@\x1f\0\0\1\0\x08\0data\0\0\0\0").decode()
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
COLOR = {"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"]}
CONFIRM = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
USER = {
    "type": "object",
    "properties": {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    },
    "required": ["username", "email"],
}
DEFAULTS = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    },
}


def _titled(values: str, titles: str) -> list[dict[str, str]]:
    return [{"const": f"{values}{n}", "title": f"{word} {titles}"} for n, word in enumerate(("First", "Second"), 1)]


OPTIONS = ["option1", "option2", "option3"]
ENUMS = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": OPTIONS},
        "titledSingle": {"type": "string", "oneOf": _titled("value", "Option")},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": OPTIONS}},
        "titledMulti": {"type": "array", "items": {"anyOf": _titled("value", "Choice")}},
    },
}
SCHEMA_2020_12 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


def text(words: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=words)])


def elicit(message: str, schema: dict[str, Any]) -> types.ElicitRequest:
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(words: str, tokens: int) -> types.CreateMessageRequest:
    message = types.SamplingMessage(role="user", content=types.TextContent(type="text", text=words))
    return types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=[message], max_tokens=tokens))


def ask(requests: dict[str, Any], state: str | None = None) -> types.InputRequiredResult:
    return types.InputRequiredResult(input_requests=requests, request_state=state)


def embedded(uri: str, mime_type: str, words: str) -> types.EmbeddedResource:
    resource = types.TextResourceContents(uri=uri, mime_type=mime_type, text=words)
    return types.EmbeddedResource(type="resource", resource=resource)


def capability(context: Context, name: str) -> bool:
    declared = context.session.client_capabilities
    return declared is not None and getattr(declared, name, None) is not None


def given(params: Any, key: str, field: str) -> Any:
    """What the client answered to one question, or None."""
    answer = (params.input_responses or {}).get(key)
    return (getattr(answer, "content", None) or {}).get(field) if answer is not None else None


class Fixture:
    """The prescribed parts; `serve` puts them in front of a server's own handlers."""

    def __init__(self, server: LabServer) -> None:
        self.server = server
        self.subscribed: set[str] = set()
        self.tools: dict[str, tuple[dict[str, Any], Handler]] = {}
        empty: dict[str, Any] = {"type": "object", "additionalProperties": False}
        for name in dir(self):
            if name.startswith("tool_"):
                function = getattr(self, name)
                self.tools[name.removeprefix("tool_")] = (getattr(function, "schema", empty), function)
        self.tools["json_schema_2020_12_tool"] = (SCHEMA_2020_12, self._said)

    def serve(self) -> None:
        server = self.server
        front = {
            "tools/list": (types.PaginatedRequestParams, self.list_tools),
            "tools/call": (types.CallToolRequestParams, self.call_tool),
            "prompts/list": (types.PaginatedRequestParams, self.list_prompts),
            "prompts/get": (types.GetPromptRequestParams, self.get_prompt),
            "resources/list": (types.PaginatedRequestParams, self.list_resources),
            "resources/templates/list": (types.PaginatedRequestParams, self.list_templates),
            "resources/read": (types.ReadResourceRequestParams, self.read_resource),
            "completion/complete": (types.CompleteRequestParams, self.complete),
        }
        self.own = {method: server.get_request_handler(method).handler for method in front}
        for method, (params, handler) in front.items():
            server.add_request_handler(method, params, handler)
        server.add_request_handler("resources/subscribe", types.SubscribeRequestParams, self.subscribe)
        server.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, self.unsubscribe)
        server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, self.set_level)
        boundary = RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience="fixture")
        server.middleware.append(boundary)

    # -- lists ---------------------------------------------------------------------------------------------------------

    async def list_tools(self, context: Context, params: Any) -> types.ListToolsResult:
        listed = await self.own["tools/list"](context, params)
        mine = [types.Tool(name=n, description=n, input_schema=schema) for n, (schema, _) in self.tools.items()]
        return types.ListToolsResult(tools=[*listed.tools, *mine])

    async def list_prompts(self, context: Context, params: Any) -> types.ListPromptsResult:
        listed = await self.own["prompts/list"](context, params)
        mine = [
            types.Prompt(
                name=name, description=name, arguments=[types.PromptArgument(name=a, required=True) for a in arguments]
            )
            for name, arguments in PROMPTS.items()
        ]
        return types.ListPromptsResult(prompts=[*listed.prompts, *mine])

    async def list_resources(self, context: Context, params: Any) -> types.ListResourcesResult:
        listed = await self.own["resources/list"](context, params)
        mine = [types.Resource(uri=uri, name=uri.rsplit("/", 1)[1], mime_type=kind) for uri, kind in RESOURCES.items()]
        return types.ListResourcesResult(resources=[*listed.resources, *mine])

    async def list_templates(self, context: Context, params: Any) -> types.ListResourceTemplatesResult:
        listed = await self.own["resources/templates/list"](context, params)
        mine = types.ResourceTemplate(uri_template="test://template/{id}/data", name="template")
        return types.ListResourceTemplatesResult(resource_templates=[*listed.resource_templates, mine])

    # -- reading -------------------------------------------------------------------------------------------------------

    async def read_resource(self, context: Context, params: types.ReadResourceRequestParams) -> Any:
        uri = params.uri
        if uri == "test://static-binary":
            content: Any = types.BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
        elif uri in RESOURCES:
            words = "This is the content of the static text resource."
            content = types.TextResourceContents(uri=uri, mime_type="text/plain", text=words)
        elif uri.startswith("test://template/") and uri.endswith("/data"):
            words = f'{{"id": "{uri.split("/")[3]}", "templateTest": true}}'
            content = types.TextResourceContents(uri=uri, mime_type="application/json", text=words)
        else:
            return await self.own["resources/read"](context, params)
        return types.ReadResourceResult(contents=[content])

    async def get_prompt(self, context: Context, params: types.GetPromptRequestParams) -> Any:
        arguments = params.arguments or {}
        if params.name == "test_input_required_result_prompt":
            told = given(params, "user_context", "context")
            if told is None:
                schema = {"type": "object", "properties": {"context": {"type": "string"}}, "required": ["context"]}
                return ask({"user_context": elicit("What context should the prompt use?", schema)})
            return _messages(types.TextContent(type="text", text=f"Use this context: {told}"))
        if params.name == "test_simple_prompt":
            return _messages(types.TextContent(type="text", text="This is a simple prompt for testing."))
        if params.name == "test_prompt_with_arguments":
            words = f"Prompt with arguments: arg1='{arguments.get('arg1')}', arg2='{arguments.get('arg2')}'"
            return _messages(types.TextContent(type="text", text=words))
        if params.name == "test_prompt_with_embedded_resource":
            block = embedded(arguments["resourceUri"], "text/plain", "Embedded resource content for testing.")
            return _messages(block, types.TextContent(type="text", text="Please process the embedded resource above."))
        if params.name == "test_prompt_with_image":
            image = types.ImageContent(type="image", data=PNG, mime_type="image/png")
            return _messages(image, types.TextContent(type="text", text="Please analyze the image above."))
        return await self.own["prompts/get"](context, params)

    async def complete(self, context: Context, params: types.CompleteRequestParams) -> Any:
        name = getattr(params.ref, "name", None)
        if name in PROMPTS:
            return types.CompleteResult(completion=types.Completion(values=["paris", "park"], total=2, has_more=False))
        return await self.own["completion/complete"](context, params)

    async def subscribe(self, context: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        self.subscribed.add(params.uri)
        return types.EmptyResult()

    async def unsubscribe(self, context: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        self.subscribed.discard(params.uri)
        return types.EmptyResult()

    async def set_level(self, context: Context, params: types.SetLevelRequestParams) -> types.EmptyResult:
        return types.EmptyResult()

    # -- tools ---------------------------------------------------------------------------------------------------------

    async def call_tool(self, context: Context, params: types.CallToolRequestParams) -> Any:
        if params.name in self.tools:
            return await self.tools[params.name][1](context, params)
        return await self.own["tools/call"](context, params)

    async def _said(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        return text(f"{params.name} was called with {params.arguments}")

    async def tool_test_simple_text(self, context: Context, params: Any) -> Any:
        return text("This is a simple text response for testing.")

    async def tool_test_image_content(self, context: Context, params: Any) -> Any:
        return types.CallToolResult(content=[types.ImageContent(type="image", data=PNG, mime_type="image/png")])

    async def tool_test_audio_content(self, context: Context, params: Any) -> Any:
        return types.CallToolResult(content=[types.AudioContent(type="audio", data=WAV, mime_type="audio/wav")])

    async def tool_test_embedded_resource(self, context: Context, params: Any) -> Any:
        block = embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")
        return types.CallToolResult(content=[block])

    async def tool_test_multiple_content_types(self, context: Context, params: Any) -> Any:
        return types.CallToolResult(
            content=[
                types.TextContent(type="text", text="Multiple content types test:"),
                types.ImageContent(type="image", data=PNG, mime_type="image/png"),
                embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
            ]
        )

    async def tool_test_error_handling(self, context: Context, params: Any) -> Any:
        words = types.TextContent(type="text", text="This tool intentionally returns an error for testing")
        return types.CallToolResult(content=[words], is_error=True)

    async def tool_test_tool_with_logging(self, context: Context, params: Any) -> Any:
        for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await context.session.send_log_message("info", words, related_request_id=context.request_id)
            await asyncio.sleep(0.05)
        return text("done")

    tool_test_logging_tool = tool_test_tool_with_logging

    async def tool_test_tool_with_progress(self, context: Context, params: Any) -> Any:
        for done in (0, 50, 100):
            await context.session.report_progress(done, 100, f"{done} of 100")
            await asyncio.sleep(0.05)
        return text("done")

    async def tool_test_reconnection(self, context: Context, params: Any) -> Any:
        if context.close_sse_stream is not None:
            await context.close_sse_stream()
        await asyncio.sleep(0.1)
        return text("Reconnection test completed successfully.")

    async def tool_test_sampling(self, context: Context, params: Any) -> Any:
        self._need(context, "sampling", types.ClientCapabilities(sampling=types.SamplingCapability()))
        message = sample(params.arguments["prompt"], 100).params.messages
        answer = await context.session.create_message(message, max_tokens=100, related_request_id=context.request_id)
        return text(f"LLM response: {answer.content.text}")

    tool_test_sampling.schema = {  # type: ignore[attr-defined]
        "type": "object",
        "properties": {"prompt": {"type": "string"}},
        "required": ["prompt"],
    }

    async def _elicited(self, context: Context, message: str, schema: dict[str, Any]) -> types.ElicitResult:
        self._need(context, "elicitation", types.ClientCapabilities(elicitation=types.ElicitationCapability()))
        return await context.session.elicit_form(message, schema, related_request_id=context.request_id)

    async def tool_test_elicitation(self, context: Context, params: Any) -> Any:
        answer = await self._elicited(context, params.arguments["message"], USER)
        return text(f"User response: action: {answer.action}, content: {answer.content}")

    tool_test_elicitation.schema = {  # type: ignore[attr-defined]
        "type": "object",
        "properties": {"message": {"type": "string"}},
        "required": ["message"],
    }

    async def tool_test_elicitation_sep1034_defaults(self, context: Context, params: Any) -> Any:
        answer = await self._elicited(context, "Please check", DEFAULTS)
        return text(f"Elicitation completed: action={answer.action}, content={answer.content}")

    async def tool_test_elicitation_sep1330_enums(self, context: Context, params: Any) -> Any:
        answer = await self._elicited(context, "Please choose", ENUMS)
        return text(f"Elicitation completed: action={answer.action}, content={answer.content}")

    def _need(self, context: Context, name: str, wanted: types.ClientCapabilities) -> None:
        if not capability(context, name):
            data = types.MissingRequiredClientCapabilityErrorData(required_capabilities=wanted)
            raise MCPError(
                types.MISSING_REQUIRED_CLIENT_CAPABILITY,
                f"the client did not declare {name}",
                data.model_dump(by_alias=True, mode="json", exclude_none=True),
            )

    async def tool_test_missing_capability(self, context: Context, params: Any) -> Any:
        self._need(context, "sampling", types.ClientCapabilities(sampling=types.SamplingCapability()))
        return text("the client can sample")

    async def tool_test_streaming_elicitation(self, context: Context, params: Any) -> Any:
        return ask({"user_name": elicit("What is your name?", NAME)})

    async def tool_test_trigger_tool_change(self, context: Context, params: Any) -> Any:
        await self.server.bus.publish(ToolsListChanged())
        return text("tools/list_changed was sent")

    async def tool_test_trigger_prompt_change(self, context: Context, params: Any) -> Any:
        await self.server.bus.publish(PromptsListChanged())
        return text("prompts/list_changed was sent")

    async def tool_test_custom_headers(self, context: Context, params: Any) -> Any:
        return text(f"region {params.arguments.get('region')}")

    tool_test_custom_headers.schema = {  # type: ignore[attr-defined]
        "type": "object",
        "properties": {"region": {"type": "string", "x-mcp-header": "Region"}, "query": {"type": "string"}},
    }

    # -- tools that ask in several rounds -----------------------------------------------------------------------------

    async def tool_test_input_required_result_elicitation(self, context: Context, params: Any) -> Any:
        name = given(params, "user_name", "name")
        if not isinstance(name, str):
            return ask({"user_name": elicit("What is your name?", NAME)})
        return text(f"Hello, {name}!")

    async def tool_greet(self, context: Context, params: Any) -> Any:
        return text(f"Hello, {params.arguments['name']}!")

    tool_greet.schema = NAME  # type: ignore[attr-defined]

    async def tool_test_tool_with_task(self, context: Context, params: Any) -> Any:
        """First the question, then the task."""
        name = given(params, "user_name", "name")
        if not isinstance(name, str):
            return ask({"user_name": elicit("What is your name?", NAME)})
        work = {"name": "slow_compute", "arguments": {"seconds": 0.3, "label": name}}
        return await self.own["tools/call"](context, params.model_copy(update=work))

    async def tool_test_input_required_result_sampling(self, context: Context, params: Any) -> Any:
        answer = (params.input_responses or {}).get("capital_question")
        if answer is None:
            return ask({"capital_question": sample("What is the capital of France?", 100)})
        return text(str(getattr(answer.content, "text", answer.content)))

    async def tool_test_input_required_result_list_roots(self, context: Context, params: Any) -> Any:
        answer = (params.input_responses or {}).get("client_roots")
        if answer is None:
            return ask({"client_roots": types.ListRootsRequest()})
        return text(", ".join(str(root.uri) for root in answer.roots))

    async def tool_test_input_required_result_request_state(self, context: Context, params: Any) -> Any:
        if params.request_state != "confirming" or given(params, "confirm", "ok") is None:
            return ask({"confirm": elicit("Please confirm", CONFIRM)}, "confirming")
        return text("state-ok")

    tool_test_input_required_result_tampered_state = tool_test_input_required_result_request_state

    async def tool_test_input_required_result_multiple_inputs(self, context: Context, params: Any) -> Any:
        wanted = {
            "user_name": elicit("What is your name?", NAME),
            "greeting": sample("Generate a greeting", 50),
            "client_roots": types.ListRootsRequest(),
        }
        if params.request_state is None or wanted.keys() - (params.input_responses or {}).keys():
            return ask(wanted, "three questions")
        return text(f"Hello, {given(params, 'user_name', 'name')}")

    async def tool_test_input_required_result_multi_round(self, context: Context, params: Any) -> Any:
        if params.request_state is None:
            return ask({"step1": elicit("Step 1: What is your name?", NAME)}, "round 1")
        if params.request_state == "round 1":
            return ask({"step2": elicit("Step 2: What is your favorite color?", COLOR)}, "round 2")
        return text(f"Your color is {given(params, 'step2', 'color')}")

    async def tool_test_input_required_result_capabilities(self, context: Context, params: Any) -> Any:
        possible = {
            "elicitation": elicit("What is your name?", NAME),
            "sampling": sample("Generate a greeting", 50),
            "roots": types.ListRootsRequest(),
        }
        return ask({name: request for name, request in possible.items() if capability(context, name)}, "asked")


PROMPTS: dict[str, list[str]] = {
    "test_simple_prompt": [],
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
    "test_prompt_with_image": [],
    "test_input_required_result_prompt": [],
}
RESOURCES = {
    "test://static-text": "text/plain",
    "test://static-binary": "image/png",
    "test://watched-resource": "text/plain",
}


def _messages(*blocks: Any) -> types.GetPromptResult:
    return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=block) for block in blocks])


def main(port: int) -> None:
    warnings.simplefilter("ignore")  # sampling and logging are deprecated; the suites still ask for them
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(init(Path(folder) / "lab").root))
        lab = compose.build_lab(workspace, {"pid": 0, "url": "", "started_at": "", "version": "0"})
        tools = Tools([*compose.all_tools(), *jobs.TOOLS])
        server = build_server(tools, lab, handles={**HANDLES, **jobs.HANDLES})
        Fixture(server).serve()
        application = server.streamable_http_app()
        print("ready", flush=True)
        uvicorn.run(application, host="127.0.0.1", port=port, log_level="error")
        compose.stop(lab)


if __name__ == "__main__":
    main(int(sys.argv[1]))
