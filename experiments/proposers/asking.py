"""Asking a model for a proposal, whoever carries the question: twice at most, within the cap, every answer noted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.campaign import Attempt
from experiments.proposers import prompt
from experiments.proposers.port import Answer, Malformed, Question
from workspace import clock
from workspace.chat import Message, Reply
from workspace.errors import LabError, Refused, Unavailable
from workspace.secrets import mask
from workspace.settings import ProposerSettings

TRIES = 2  # a malformed answer costs one more question
CHARACTERS_A_TOKEN = 2  # at least, whatever the language
KEPT = 2000  # characters of an answer that could not be used
Ask = Callable[[Sequence[Message]], tuple[Reply, float]]  # the answer and the money it cost


class Paid(Unavailable):
    """There is no answer, and it is known what that has cost."""

    money: float = 0.0


class Pace:
    """At most so many questions a minute, over all campaigns of this process."""

    def __init__(self, per_minute: float) -> None:
        self.interval_s = 60.0 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            pause = self._next - now
            self._next = max(now, self._next) + self.interval_s
        if pause > 0:
            time.sleep(pause)


@dataclass
class Asking:
    """`numbers_elsewhere`: an optimizer tunes the search space, the model is for structure."""

    settings: ProposerSettings
    pace: Pace
    numbers_elsewhere: bool = False

    def proposal(self, question: Question, name: str, ask: Ask) -> Answer:
        """Raises what `ask` raises, `Malformed` after the second unusable answer, `Refused` when the cap is reached."""
        text = prompt.question_text(question, patches=self.settings.patches, numbers_elsewhere=self.numbers_elsewhere)
        messages = [Message("system", prompt.SYSTEM), Message("user", text)]
        failed = [attempt for attempt in question.attempts if attempt.problem]
        problem = failed[-1].problem if failed else None
        for _ in range(len(failed), TRIES):
            intent = self._intent(question, name, messages)
            self._cap(question, intent.money)
            self.pace.wait()
            # before it is asked: a kill between question and answer must not make the answer free
            question.note(intent)
            try:
                reply, money = ask(messages)
            except Paid as error:
                words = mask(error.problem)[:KEPT]
                question.note(Attempt(at=clock.now(), model=name[:100], text=words, money=error.money))
                raise
            except LabError as error:
                if not error.may_have_worked:
                    question.note(None)
                raise
            question.spent_now += money
            try:
                claim = prompt.parse(reply.text, patches=self.settings.patches)
                if not reply.finished:
                    raise prompt.Unreadable("the answer was cut off at its longest length")
            except prompt.Unreadable as error:
                problem = str(error)
                question.note(_attempt(reply, money, problem))
                messages = [
                    *messages[:2],
                    Message("assistant", reply.text[:KEPT] or "(nothing)"),
                    Message("user", f"That cannot be used: {problem}. Answer again, with the JSON object only."),
                ]
            else:
                question.note(_attempt(reply, money, None))
                return Answer(name, claim)
        raise Malformed(f"{name} gave {TRIES} answers that cannot be used; the last: {problem}")

    def _intent(self, question: Question, name: str, messages: Sequence[Message]) -> Attempt:
        """What the question costs at most: as many tokens as half its characters, and the longest answer; or as the
        dearest answer so far, where that was more (of Claude Code, which sets its own price)."""
        s = self.settings
        tokens = sum(len(message.text) for message in messages) // CHARACTERS_A_TOKEN
        most = (tokens * s.price_input + s.answer_tokens * s.price_output) / 1e6
        return Attempt(at=clock.now(), model=name[:100], open=True, money=max(most, question.dearest))

    def _cap(self, question: Question, most: float) -> None:
        """Raises `Refused`, which pauses the campaign, when the money for answers does not last for this question."""
        spent, cap, money = question.answers_cost + question.spent_now, self.settings.spending_cap, question.money_left
        if money is not None and money - question.spent_now <= 0:
            raise Refused("the money of this campaign is spent", fix="extend its budget, then resume it")
        if cap and (spent >= cap or spent + most > cap):
            raise Refused(
                f"answers have cost {spent:.4g}, another may cost {most:.4g}; the cap of one campaign is {cap:g}",
                fix="raise [proposer] spending_cap in lab.toml, then resume the campaign",
            )


def _attempt(reply: Reply, money: float, problem: str | None) -> Attempt:
    return Attempt(
        at=clock.now(),
        model=reply.model[:100],
        problem=problem,
        text=mask(reply.text[:KEPT]) if problem else "",
        input_tokens=reply.input_tokens or 0,
        output_tokens=reply.output_tokens or 0,
        money=money,
    )
