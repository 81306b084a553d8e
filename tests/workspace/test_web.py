"""Asking servers outside, a language model among them, tried against servers on loopback."""

from __future__ import annotations

import email.utils
import time
from typing import Any

import pytest
from loopback import Answer, Asked, Loopback, in_turn

from workspace import web
from workspace.chat import ChatModel, Message, ask
from workspace.errors import LabError, Refused, Unavailable

KEY = "sk-test-0123456789abcdefghij"
OPENAI = {
    "model": "tiny-1",
    "choices": [{"message": {"role": "assistant", "content": "42"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 2},
}
ANTHROPIC = {
    "model": "tiny-2",
    "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "4"}, {"type": "text", "text": "2"}],
    "stop_reason": "max_tokens",
    "usage": {"input_tokens": 3, "cache_read_input_tokens": 8, "output_tokens": 2},
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "FIRST_WAIT_S", 0.01)


def test_what_may_pass_is_tried_again_and_what_a_server_asks_for_is_waited_for() -> None:
    busy = Answer(status=503, headers={"Retry-After": "1"})
    with Loopback(in_turn(busy, Answer(status=500), Answer("fine"))) as server:
        assert web.request("GET", server.url).body == b"fine"
        first, second, third = (asked.at for asked in server.asked)
        assert second - first >= 1.0 and third - second < 1.0


def test_a_date_to_wait_for_is_understood_and_a_long_wait_is_told_instead() -> None:
    date = email.utils.format_datetime(email.utils.localtime().astimezone().replace(year=2090))
    with Loopback(in_turn(Answer(status=429, headers={"Retry-After": date}))) as server:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1 asks to be left alone for \d+ s"):
            web.request("GET", server.url)
        assert len(server.asked) == 1


def test_a_body_that_breaks_off_is_fetched_again() -> None:
    with Loopback(in_turn(Answer("x" * 5000, cut=100), Answer("y" * 5000))) as server:
        assert web.request("GET", server.url).body == b"y" * 5000


def test_a_server_that_stays_away_is_named_without_the_rest_of_its_url() -> None:
    with Loopback(in_turn(Answer())) as server:
        gone = server.url.replace("http://", "http://user:password@")
    with pytest.raises(Unavailable) as refusal:
        web.request("GET", f"{gone}/secret-path", attempts=2)
    assert "127.0.0.1 cannot be reached" in str(refusal.value)
    assert "password" not in str(refusal.value) and "secret-path" not in str(refusal.value)


@pytest.mark.parametrize("url", ["", "ftp://host/x", "http://", "no url", "http://[half"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        web.request("GET", url)


def test_more_than_allowed_is_not_taken() -> None:
    with Loopback(in_turn(Answer(b"x" * 3_000_000))) as server, pytest.raises(Refused, match="more than 1 MB"):
        web.request("GET", server.url, limit=1 << 20)


def test_a_slow_answer_to_a_question_is_not_asked_for_twice() -> None:
    with Loopback(in_turn(Answer("late", delay_s=1.0))) as server:
        with pytest.raises(Unavailable, match="no answer within"):
            web.request("POST", server.url, body={}, timeout_s=0.2)
        assert len(server.asked) == 1
        time.sleep(1.0)  # its thread ends


def test_a_question_whose_answer_breaks_off_is_not_sent_again() -> None:
    with Loopback(in_turn(Answer("x" * 5000, cut=100), Answer("y"))) as server:
        with pytest.raises(Unavailable) as failure:
            web.request("POST", server.url, body={})
        assert len(server.asked) == 1 and failure.value.may_have_worked
    with pytest.raises(Unavailable) as failure:
        web.request("POST", server.url, body={})
    assert not failure.value.may_have_worked, "nobody took it"


def test_openai_and_anthropic_are_asked_in_their_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_TEST_KEY", KEY)

    def answer(asked: Asked) -> Answer:
        return Answer(ANTHROPIC if asked.path == "/v1/messages" else OPENAI)

    question = [Message("system", "Be brief."), Message("user", "6 x 7?")]
    with Loopback(answer) as server:
        openai = ask(ChatModel(f"{server.url}/v1", "tiny", key_variable="LAB_TEST_KEY"), question, max_tokens=9)
        anthropic = ask(ChatModel(server.url, "tiny", "anthropic", "LAB_TEST_KEY"), question, temperature=0.0)
    assert (openai.text, openai.model, openai.finished) == ("42", "tiny-1", True)
    assert (openai.input_tokens, openai.output_tokens) == (11, 2)
    assert (anthropic.text, anthropic.finished) == ("42", False)
    assert (anthropic.input_tokens, anthropic.output_tokens) == (11, 2)
    first, second = server.asked
    assert (first.path, first.headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (
        first.json()["messages"][0] == {"role": "system", "content": "Be brief."} and "temperature" not in first.json()
    )
    assert (second.path, second.headers["x-api-key"]) == ("/v1/messages", KEY)
    assert second.json()["system"] == "Be brief." and [m["role"] for m in second.json()["messages"]] == ["user"]


def test_a_model_that_takes_another_name_for_the_limit_gets_it() -> None:
    def answer(asked: Asked) -> Answer:
        if "max_tokens" in asked.json():
            return Answer({"error": {"message": "use 'max_completion_tokens' instead"}}, 400)
        return Answer(OPENAI)

    with Loopback(answer) as server:
        assert ask(ChatModel(server.url, "new"), [Message("user", "?")], max_tokens=7).text == "42"
    assert server.asked[-1].json()["max_completion_tokens"] == 7


def test_a_refused_question_gives_the_servers_words_and_never_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_TEST_KEY", "plainword-without-shape")
    words = {"error": {"message": "Incorrect key plainword-without-shape.", "type": "auth"}}
    with Loopback(in_turn(Answer(words, 401))) as server, pytest.raises(Refused) as refusal:
        ask(ChatModel(server.url, "tiny", key_variable="LAB_TEST_KEY"), [Message("user", "?")])
    assert "Incorrect key ***" in str(refusal.value) and "plainword" not in str(refusal.value)
    assert len(server.asked) == 1


def test_a_key_that_is_not_set_is_named() -> None:
    with pytest.raises(Unavailable, match="LAB_NO_SUCH_KEY"):
        ask(ChatModel("http://127.0.0.1:9", "tiny", key_variable="LAB_NO_SUCH_KEY"), [Message("user", "?")])


@pytest.mark.parametrize("body", ["<html>busy</html>", {"choices": []}, [1], {"content": None}])
def test_an_answer_in_another_form_is_an_error(body: Any) -> None:
    for api in ("openai", "anthropic"):
        with Loopback(in_turn(Answer(body))) as server, pytest.raises(LabError, match=f"not answer as the {api} API"):
            ask(ChatModel(server.url, "tiny", api), [Message("user", "?")])  # type: ignore[arg-type]
