"""Resources, prompts and their completion, as the protocol wants them: what does not exist is -32602."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import anyio.to_thread
import mcp.types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from tools import prompts, resources
from tools.lab import Lab
from tools.tool import no_lab
from workspace.errors import LabError, NotFound, Refused

Context = ServerRequestContext[Any]
log = logging.getLogger(__name__)
T = TypeVar("T")


class Reading:
    """The handlers of one lab; with `lab` None there is nothing to read yet, and that is what they say."""

    def __init__(self, lab: Lab | None) -> None:
        self.lab = lab

    def handlers(self) -> dict[str, Any]:
        """The `on_...` arguments of a server."""
        return {
            "on_list_resources": self.list_resources,
            "on_list_resource_templates": self.list_templates,
            "on_read_resource": self.read_resource,
            "on_list_prompts": self.list_prompts,
            "on_get_prompt": self.get_prompt,
            "on_completion": self.complete,
        }

    async def list_resources(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        lab = self.lab
        found = [] if lab is None else await _asked("resources/list", lambda: list(resources.listed(lab)))
        return types.ListResourcesResult(resources=[types.Resource(**asdict(item)) for item in found])

    async def list_templates(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        shown = [
            types.ResourceTemplate(
                uri_template=address.uri,
                name=address.name,
                title=address.title,
                description=address.description,
                mime_type=address.mime_type,
            )
            for address in resources.TEMPLATES
        ]
        return types.ListResourceTemplatesResult(resource_templates=shown)

    async def read_resource(
        self, context: Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        text, mime_type = await _asked(params.uri, lambda: resources.read(self._present(), params.uri))
        content = types.TextResourceContents(uri=params.uri, mime_type=mime_type, text=text)
        return types.ReadResourceResult(contents=[content])

    async def list_prompts(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=[_describe(prompt) for prompt in prompts.PROMPTS.values()])

    async def get_prompt(self, context: Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        text = await _asked(params.name, lambda: prompts.write(self._present(), params.name, params.arguments))
        message = types.PromptMessage(role="user", content=types.TextContent(type="text", text=text))
        return types.GetPromptResult(description=prompts.PROMPTS[params.name].description, messages=[message])

    async def complete(self, context: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
        argument = params.argument
        find: Callable[[Lab, str, str, str], list[str]]
        if isinstance(params.ref, types.ResourceTemplateReference):
            where, find = params.ref.uri, resources.complete
        else:
            where, find = params.ref.name, prompts.complete
        found = await _asked(where, lambda: find(self._present(), where, argument.name, argument.value))
        shown = found[: resources.MOST_COMPLETIONS]
        return types.CompleteResult(
            completion=types.Completion(values=shown, total=len(found), has_more=len(found) > len(shown))
        )

    def _present(self) -> Lab:
        if self.lab is None:
            raise no_lab()
        return self.lab


def _describe(prompt: prompts.Prompt) -> types.Prompt:
    return types.Prompt(
        name=prompt.name,
        title=prompt.title,
        description=prompt.description,
        arguments=[
            types.PromptArgument(name=a.name, description=a.description, required=a.required) for a in prompt.arguments
        ],
    )


async def _asked(what: str, work: Callable[[], T]) -> T:
    """`work` in a thread; a refusal becomes a protocol error, because only a tool's result has room for another."""
    try:
        return await anyio.to_thread.run_sync(work)
    except (NotFound, Refused) as error:
        raise MCPError(types.INVALID_PARAMS, str(error), {"uri": what}) from error
    except LabError as error:
        raise MCPError(types.INTERNAL_ERROR, str(error), {"uri": what}) from error
    except Exception as error:  # the boundary to the wire, as for tools
        log.exception("%s failed", what)
        raise MCPError(
            types.INTERNAL_ERROR, f"this failed inside the lab; look at .lab/service.log ({what})"
        ) from error
