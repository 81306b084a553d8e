"""A language model proposes: the Messages API of Anthropic, or any server that speaks OpenAI's (Ollama, vLLM, ...).

Off unless lab.toml says otherwise: what it is asked holds results, notes and passages of papers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from experiments.proposers.asking import Asking
from experiments.proposers.port import Answer, Question
from workspace import chat
from workspace.errors import LabError, Refused, Unavailable
from workspace.settings import ProposerSettings

ON = 'set [proposer] api = "anthropic" or "openai" (Ollama, vLLM, ...) and model in lab.toml'


class ModelProposer:
    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self.settings: ProposerSettings = asking.settings

    def check(self, question: Question) -> None:
        s = self.settings
        self._switched_on()
        if not s.model:
            raise Refused("no model is named", fix="set [proposer] model in lab.toml")
        if s.api == "anthropic" and not s.key_variable:
            raise Refused("no API key is named", fix='set [proposer] key_variable = "LAB_..." in lab.toml')
        if s.key_variable and not os.environ.get(s.key_variable):
            raise Refused(
                f"the environment variable {s.key_variable} is not set where the lab runs",
                fix=f"export {s.key_variable}=..., then `lab-mcp shutdown` and start again",
            )
        if (question.campaign.budget.money or s.spending_cap) and not (s.price_input or s.price_output):
            raise Refused(
                "without prices a budget in money, or a spending_cap, would never be used up",
                fix="set [proposer] price_input and price_output in lab.toml",
            )

    def propose(self, question: Question) -> Answer:
        self._switched_on()
        name = f"{'hybrid' if self.asking.numbers_elsewhere else 'llm'}/{self.settings.model}"
        return self.asking.proposal(question, name, self._ask)

    def _ask(self, messages: Sequence[chat.Message]) -> tuple[chat.Reply, float]:
        """Raises `Unavailable` while the server is away or answers nonsense, `Refused` when it refuses the question."""
        s = self.settings
        assert s.api != "off"
        model = chat.ChatModel(s.url or chat.DEFAULT_URLS[s.api], s.model, s.api, s.key_variable, s.timeout_seconds)
        try:
            reply = chat.ask(model, messages, max_tokens=s.answer_tokens)
        except (Refused, Unavailable):
            raise
        except LabError as error:
            away = Unavailable(error.problem, fix=error.fix)
            away.may_have_worked = error.may_have_worked
            raise away from error
        tokens_in, tokens_out = reply.input_tokens or 0, reply.output_tokens or 0
        return reply, (tokens_in * s.price_input + tokens_out * s.price_output) / 1e6

    def _switched_on(self) -> None:
        if self.settings.api == "off":
            raise Refused(
                "asking a language model is switched off: nothing leaves the premises", fix=f"to allow it, {ON}"
            )
