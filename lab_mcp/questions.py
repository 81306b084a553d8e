"""What the service asks the client in the older era (a form, say), told apart from what an earlier service asked.

Every service counts its questions from the beginning, and a call that is sent again asks its question again. To the
client each question has a name of its own, and one whose service has died is withdrawn. `link` is the number of the
bridge's link to the service that asks: another one for every service, and for every session there.
"""

from __future__ import annotations

from typing import Any

from lab_mcp.messages import Message


class Questions:
    def __init__(self) -> None:
        self._open: dict[str, tuple[int, Any]] = {}  # name -> link, the service's own id

    def asked(self, message: Message, link: int) -> Message:
        """The question, or the service's withdrawal of one, as the client is to see it."""
        if message.get("method") == "notifications/cancelled":
            parameters = message.get("params") or {}
            name = _name(link, parameters.get("requestId"))
            if self._open.pop(name, None) is None:
                return message
            return {**message, "params": {**parameters, "requestId": name}}
        if "method" not in message or message.get("id") is None:
            return message
        name = _name(link, message["id"])
        self._open[name] = (link, message["id"])
        return {**message, "id": name}

    def answered(self, message: Message, link: int) -> Message | None:
        """The client's answer as the service is to see it; None when it is to a question of a service that died.

        The question stays open until its answer has arrived (`settled`).
        """
        asked = self._open.get(message["id"]) if isinstance(message.get("id"), str) else None
        if asked is None or asked[0] != link:
            return None
        return {**message, "id": asked[1]}

    def settled(self, message: Message) -> None:
        """The service has this answer."""
        self._open.pop(message["id"], None)

    def withdrawn(self, link: int) -> list[Message]:
        """Notifications that withdraw what services before this one asked."""
        gone = [name for name, (asked_by, _) in self._open.items() if asked_by != link]
        for name in gone:
            del self._open[name]
        reason = "the lab's service was restarted"
        return [
            {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": name, "reason": reason}}
            for name in gone
        ]


def _name(link: int, own_id: Any) -> str:
    return f"lab-{link}-{own_id}"
