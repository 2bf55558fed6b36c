"""Gemini and OpenAI-compatible graders against a server on this machine that misbehaves."""

from __future__ import annotations

import json
import logging
import math
import random
import signal
import ssl
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tests.fake_api import (
    INPUT_TOKENS,
    MODEL,
    OUTPUT_TOKENS,
    Call,
    FakeApi,
    Reply,
    Script,
    grading,
    in_turn,
    picture,
)
from utils import UserError
from verifiers import api as api_module
from verifiers.api import RateLimit, Secret, backoff, rate_limit, refused, wait_asked
from verifiers.base import Chosen, Item, Score
from verifiers.gemini import Gemini
from verifiers.grading import ApiGrader
from verifiers.openai_compatible import OpenAICompatible
from verifiers.rubric import ASPECTS, GUARD

KEY = "canary-4f1d9b7e2a6c"
GRADERS: dict[str, type[ApiGrader]] = {"gemini": Gemini, "openai": OpenAICompatible}
ROOM = {"gemini": 800 + 4096, "openai": 800}  # tokens: of the answer, and of thought

OK = Reply()
BUSY = Reply(status=429, headers={"Retry-After": "7"}, error={"message": "slow down"})
RETRY_INFO = Reply(
    status=429,
    error={"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "33s"}]},
)
BROKEN = Reply(status=500, error={"message": "oops"})


class FakeClock(api_module.Clock):
    """Time that passes by sleeping only; notes every sleep."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._lock = threading.Lock()
        self._now = 1000.0

    def now(self) -> float:
        with self._lock:
            return self._now

    def sleep(self, seconds: float, wake: threading.Event) -> None:
        with self._lock:
            if seconds > 0:
                self.slept.append(seconds)
                self._now += seconds

    def chance(self) -> float:
        return 0.5


@pytest.fixture(params=sorted(GRADERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(autouse=True, scope="module")
def _one_trust_store() -> Iterator[None]:
    """Reading all certificates for every client is most of the time, and no test needs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
        yield


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeApi]]:
    servers: list[FakeApi] = []

    def started(script: Script, **options: Any) -> FakeApi:
        servers.append(FakeApi(script, **options).__enter__())
        return servers[-1]

    yield started
    for server in servers:
        server.__exit__()


def grader(kind: str, server: FakeApi, **options: Any) -> tuple[ApiGrader, FakeClock]:
    url = server.url if kind == "gemini" else server.url + "/v1"
    verifier = GRADERS[kind](base_url=url, model_name="asked", **options)
    verifier.clock = clock = FakeClock()  # type: ignore[misc]
    verifier.check()
    verifier.load("cpu")
    return verifier, clock


def items(n: int) -> list[Item]:
    return [Item(picture(i), f"picture {i}") for i in range(n)]


def bad(value: Any) -> Reply:
    return Reply(grading(overall_score=value))


OUTCOMES: dict[str, tuple[list[Reply], str, int, str]] = {
    # name: (replies in turn, status, attempts, what the explanation says)
    "normal": ([OK], "ok", 1, "why overall_score"),
    "429 with Retry-After": ([BUSY, OK], "ok", 2, ""),
    "429 with RetryInfo": ([RETRY_INFO, OK], "ok", 2, ""),
    "429 that asks for an hour": (
        [Reply(status=429, headers={"Retry-After": "3600"})], "unscored", 1, "to wait 3600 s"),
    "500 twice": ([BROKEN, BROKEN, OK], "ok", 3, ""),
    "408": ([Reply(status=408), OK], "ok", 2, ""),
    "500 for ever": ([BROKEN], "unscored", 6, "the server said 500: oops"),
    "timeout": ([Reply(fault="hang"), OK], "ok", 2, ""),
    "timeout for ever": ([Reply(fault="hang")], "unscored", 6, "no answer within 0.2 s"),
    "dropped connection": ([Reply(fault="drop"), OK], "ok", 2, ""),
    "dropped for ever": ([Reply(fault="drop")], "unscored", 6, "connection was lost"),
    "half a body": ([Reply(fault="half"), OK], "ok", 2, ""),
    "a page instead of JSON": ([Reply(fault="garbage"), OK], "ok", 2, ""),
    "refused as wrong": (
        [Reply(status=400, error={"message": "bad seed"})], "unscored", 1, "400: bad seed"),
    "answer blocked": ([Reply(ending="blocked")], "blocked", 1, "blocked the image"),
    "prompt blocked": ([Reply(ending="refused")], "blocked", 1, "blocked the image"),
    "blocked by an error": (
        [Reply(status=400, error={"code": "content_filter"})], "blocked", 1, "content_filter"),
    "cut off once": ([Reply(grading()[:90], "truncated"), OK], "ok", 2, ""),
    "cut off twice": (
        [Reply(grading()[:90], "truncated")], "truncated", 2, "raise verifier_args.max_new_tokens"),
    "cut off behind the grading": ([Reply(grading() + "   ", "truncated")], "ok", 1, ""),
    "cut off, then malformed": (
        [Reply("{", "truncated"), Reply("{")], "unscored", 3, "broken or cut off"),
    "prose around JSON": ([Reply(f"Sure!\n```json\n{grading()}\n```\n")], "ok", 1, ""),
    "score 11 once": ([bad(11), OK], "ok", 2, ""),
    "score 11": ([bad(11)], "unscored", 2, "overall_score.score is 11"),
    "score 9/10": ([bad("9/10")], "unscored", 2, '"9/10"'),
    "score nan": ([bad(math.nan)], "unscored", 2, "NaN"),
    "empty": ([Reply("")], "unscored", 2, "empty"),
    "an aspect missing": ([Reply('{"overall_score": 7}')], "unscored", 2, "missing"),
    "malformed, then 500": ([bad(11), BROKEN, OK], "ok", 3, ""),
    "malformed, then blocked": ([bad(11), Reply(ending="blocked")], "blocked", 2, "blocked"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_outcome(name: str, kind: str, serve: Callable[..., FakeApi]) -> None:
    replies, status, attempts, said = OUTCOMES[name]
    server = serve(in_turn(replies))
    verifier, _ = grader(
        kind, server, timeout={"timeout": 0.5, "timeout for ever": 0.2}.get(name, 10)
    )
    (score,) = verifier.score(items(1))
    assert (score.status, score.details["attempts"]) == (status, attempts)
    assert len(server.calls) == attempts
    assert said in score.explanation
    assert score.explanation
    if status == "ok":
        assert score.value == score.aspects["overall_score"] == 7.5
        assert tuple(score.aspects) == ASPECTS
        assert score.details["explanations"]["accuracy_to_prompt"] == "why accuracy_to_prompt"
    else:
        assert math.isnan(score.value) and not score.aspects
    json.dumps(dict(score.details))  # a record can hold it


def test_a_wait_that_the_server_names_is_kept(kind: str, serve: Callable[..., FakeApi]) -> None:
    for reply, asked in ((BUSY, 7), (RETRY_INFO, 33)):
        verifier, clock = grader(kind, serve(in_turn([reply, OK])))
        verifier.score(items(1))
        assert len(clock.slept) == 1 and asked <= clock.slept[0] <= asked + 1


def test_waits_grow_where_the_server_names_none(kind: str, serve: Callable[..., FakeApi]) -> None:
    verifier, clock = grader(kind, serve(in_turn([BROKEN])), max_retries=8)
    verifier.score(items(1))
    assert clock.slept == [0.5, 1, 2, 4, 8, 16, 30, 30]  # half of 1, 2, 4, ... 60


def test_nothing_is_retried_twice(kind: str, serve: Callable[..., FakeApi]) -> None:
    server = serve(in_turn([BROKEN]))
    verifier, _ = grader(kind, server, max_retries=0)
    assert verifier.score(items(1))[0].details["attempts"] == len(server.calls) == 1


def test_what_was_answered_and_spent_is_told(kind: str, serve: Callable[..., FakeApi]) -> None:
    server = serve(in_turn([bad(11), OK]))
    verifier, _ = grader(kind, server, input_price=0.75, output_price=3.75)
    details = verifier.score(items(1))[0].details
    assert details["model"] == MODEL
    assert (details["input_tokens"], details["output_tokens"]) == (
        2 * INPUT_TOKENS,
        2 * OUTPUT_TOKENS,
    )
    assert details["cost"] == pytest.approx((600 * 0.75 + 200 * 3.75) / 1e6)


def test_cost_is_told_only_with_prices(kind: str, serve: Callable[..., FakeApi]) -> None:
    verifier, _ = grader(kind, serve(in_turn([OK])), input_price=1.0)
    assert "cost" not in verifier.score(items(1))[0].details


def test_an_unusable_answer_is_kept_and_told_to_the_grader(
    kind: str, serve: Callable[..., FakeApi]
) -> None:
    server = serve(in_turn([Reply("I like it. " + "x" * 9000)]))
    verifier, _ = grader(kind, server)
    (score,) = verifier.score(items(1))
    assert score.details["answer"].startswith("I like it. xxx")
    assert len(score.details["answer"]) <= 500
    first, second = server.calls
    assert second.texts[:-1] == first.texts and "no JSON object" in second.texts[-1]


def test_an_answer_cut_off_is_asked_for_with_more_room(
    kind: str, serve: Callable[..., FakeApi]
) -> None:
    server = serve(in_turn([Reply("{", "truncated"), OK]))
    verifier, _ = grader(kind, server)
    verifier.score(items(1))
    assert [call.cap for call in server.calls] == [ROOM[kind], 4 * ROOM[kind]]


def test_thinking_tokens_come_on_top(kind: str, serve: Callable[..., FakeApi]) -> None:
    server = serve(in_turn([OK]))
    verifier, _ = grader(kind, server, max_new_tokens=100, thinking_tokens=11)
    verifier.score(items(1))
    assert server.calls[0].cap == 111


def test_order_is_kept_whoever_answers_first(kind: str, serve: Callable[..., FakeApi]) -> None:
    def slow_first(call: Call) -> Reply:
        time.sleep(0.002 * (24 - call.image))
        return Reply(grading(call.image / 10))

    server = serve(slow_first)
    verifier, _ = grader(kind, server, max_concurrency=8)
    scores = verifier.score(items(24))
    assert [score.value for score in scores] == [i / 10 for i in range(24)]
    assert all(f"picture {c.image}\n" in c.texts[1] for c in server.calls)


def test_never_more_at_once_than_allowed(kind: str, serve: Callable[..., FakeApi]) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def counted(call: Call) -> Reply:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return OK

    verifier, _ = grader(kind, serve(counted), max_concurrency=3)
    verifier.score(items(12))
    assert most == 3


def test_nothing_to_score_asks_nothing(kind: str, serve: Callable[..., FakeApi]) -> None:
    server = serve(in_turn([OK]))
    verifier, _ = grader(kind, server)
    assert verifier.score([]) == [] and not server.calls


def test_one_bad_item_costs_its_own_score(kind: str, serve: Callable[..., FakeApi]) -> None:
    server = serve(in_turn([OK]))
    verifier, _ = grader(kind, server)
    broken = Item(object(), "no image at all")
    scores = verifier.score([*items(1), broken, Item(picture(2).convert("CMYK"), "print")])
    assert [score.status for score in scores] == ["ok", "invalid_image", "ok"]
    assert "AttributeError" in scores[1].explanation


def test_a_fault_of_ours_costs_one_score(
    kind: str, serve: Callable[..., FakeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier, _ = grader(kind, serve(in_turn([OK])))
    true = verifier._ask

    def faulty(question: Any, cap: int) -> Any:
        if "picture 1\n" in question.parts[2]:
            raise ZeroDivisionError(f"by zero with {KEY}")
        return true(question, cap)

    monkeypatch.setattr(verifier, "_ask", faulty)
    scores = verifier.score(items(3))
    assert [score.status for score in scores] == ["ok", "failed", "ok"]
    assert scores[1].explanation == "ZeroDivisionError: by zero with ***"


def test_the_request_holds_what_the_options_say(kind: str, serve: Callable[..., FakeApi]) -> None:
    server = serve(in_turn([OK]))
    verifier, _ = grader(kind, server, seed=11, temperature=0.5)
    verifier.score(items(1))
    (call,) = server.calls
    schema = verifier._rubric.schema
    if kind == "gemini":
        assert call.path.endswith("/models/asked:generateContent")
        config = call.body["generationConfig"]
        sent = config["responseSchema"]
        assert tuple(sent["properties"]) == tuple(sent["required"]) == ASPECTS
        assert tuple(sent["property_ordering"]) == ASPECTS
        grade = sent["properties"]["overall_score"]
        assert grade["property_ordering"] == ["explanation", "score"]
        assert grade["properties"]["explanation"] == {"type": "STRING", "max_length": 300}
        assert grade["properties"]["score"] == {"type": "NUMBER", "minimum": 0, "maximum": 10}
        assert config["responseMimeType"] == "application/json" and "thinkingConfig" not in config
        assert call.body["systemInstruction"]["parts"][0]["text"] == verifier._rubric.system
    else:
        assert call.path == "/v1/chat/completions" and call.body["model"] == "asked"
        config = call.body
        assert config["response_format"]["type"] == "json_schema"
        wanted = config["response_format"]["json_schema"]
        assert wanted == {"name": "grading", "strict": True, "schema": schema}
        assert config["messages"][0] == {"role": "system", "content": verifier._rubric.system}
    assert (config["seed"], config["temperature"]) == (11, 0.5)
    assert "picture 0" in call.texts[1] and GUARD in call.texts[1]


def test_unset_options_are_not_sent(kind: str, serve: Callable[..., FakeApi]) -> None:
    server = serve(in_turn([OK]))
    verifier, _ = grader(kind, server, seed=None)
    verifier.score(items(1))
    body = server.calls[0].body
    config = body["generationConfig"] if kind == "gemini" else body
    assert not {"seed", "temperature"} & config.keys()


def test_scores_only(kind: str, serve: Callable[..., FakeApi]) -> None:
    server = serve(in_turn([Reply(json.dumps(dict.fromkeys(ASPECTS, 8)))]))
    verifier, _ = grader(kind, server, mode="scores_only")
    (score,) = verifier.score(items(1))
    assert (score.value, score.status, score.explanation) == (8, "ok", "")
    assert "explanations" not in score.details
    assert "explanation" not in json.dumps(server.calls[0].body)
    assert verifier.rubric_hash != GRADERS[kind]().rubric_hash


def test_a_rubric_of_ones_own_is_sent(
    kind: str, serve: Callable[..., FakeApi], tmp_path: Path
) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Like cats.", encoding="utf-8")
    server = serve(in_turn([OK]))
    verifier, _ = grader(kind, server, prompt_path=str(path))
    verifier.score(items(1))
    assert "Like cats." in json.dumps(server.calls[0].body)
    assert verifier.rubric_hash == verifier._rubric.hash


def test_the_chosen_metric_is_the_value(kind: str, serve: Callable[..., FakeApi]) -> None:
    server = serve(in_turn([Reply(grading(4, overall_score=6))]))
    verifier, _ = grader(kind, server)
    mixed = {"overall_score": 0.5, "accuracy_to_prompt": 0.25}
    assert Chosen(verifier, kind, "creativity_and_originality").score(items(1))[0].value == 4
    assert Chosen(verifier, kind, mixed).score(items(1))[0].value == 4


# The key, the model, the account


def wrong_key(call: Call) -> Reply:
    sent = call.headers.get("x-goog-api-key", call.headers.get("authorization"))
    if call.gemini:  # as Google does: a 400 that quotes no status of its own
        reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
        return Reply(status=400, error={"message": f"key {sent} not valid", "details": [reason]})
    return Reply(status=401, error={"message": f"Incorrect API key provided: {sent}"})


REFUSALS: dict[str, tuple[Script, str]] = {
    "wrong key": (wrong_key, "refused the key .*: check the environment variable [A-Z_]+_API_KEY"),
    "no rights": (in_turn([Reply(status=403)]), "refused the key .403.: check"),
    "no model": (
        in_turn([Reply(status=404, error={"message": "no such model"})]),
        "'asked', the server said 404: no such model: mend verifier_args.model_name",
    ),
    "no money": (
        in_turn([Reply(status=429, error={"code": "insufficient_quota"})]), "the account's quota"),
    "no requests left today": (
        in_turn([Reply(status=429, error={"details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure",
             "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]},
            RETRY_INFO.error["details"][0]]})]), "wait for its next day"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_of_everything_stops_the_run(
    name: str, kind: str, serve: Callable[..., FakeApi]
) -> None:
    script, said = REFUSALS[name]
    server = serve(script)
    verifier, clock = grader(kind, server)
    with pytest.raises(UserError, match=said) as caught:
        verifier.score(items(3))
    assert len(server.calls) == 3 and not clock.slept  # asking again would not help
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert str(caught.value).count(". ") == 0


def test_a_refusal_of_one_item_is_that_items_loss(kind: str, serve: Callable[..., FakeApi]) -> None:
    server = serve(lambda call: Reply(status=403) if call.image == 1 else OK)
    verifier, _ = grader(kind, server)
    scores = verifier.score(items(3))
    assert [score.status for score in scores] == ["ok", "unscored", "ok"]
    assert "refused the key (403)" in scores[1].explanation


def test_the_key_is_sent_in_a_header_and_shown_nowhere(
    kind: str,
    serve: Callable[..., FakeApi],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.NOTSET)
    quoting = Reply(status=500, error={"message": f"at {KEY}"})
    script = [
        OK, quoting, Reply(f"a key: {KEY}"), Reply(fault="drop"), Reply(fault="garbage"),
        Reply(ending="refused"), Reply(status=418, error={"message": KEY}), wrong_key,
    ]  # fmt: skip

    def replied(call: Call) -> Reply:
        reply = script[call.image]
        return reply(call) if callable(reply) else reply

    server = serve(replied)
    verifier, _ = grader(kind, server, max_retries=1)
    scores: list[Score] = verifier.score(items(len(script)))
    assert [s.status for s in scores].count("ok") == 1
    shown = [repr(verifier), repr(vars(verifier)), repr(scores), caplog.text, *capfd.readouterr()]
    shown += [call.path + json.dumps(call.body) for call in server.calls]
    assert KEY not in "".join(shown)
    assert "at ***" in scores[1].explanation and "a key: ***" in scores[2].details["answer"]
    name, value = (
        ("x-goog-api-key", KEY) if kind == "gemini" else ("authorization", f"Bearer {KEY}")
    )
    assert all(call.headers[name] == value for call in server.calls)


def test_a_redirect_is_not_followed_with_the_key(kind: str, serve: Callable[..., FakeApi]) -> None:
    elsewhere = serve(in_turn([OK]))
    server = serve(in_turn([Reply(status=307, headers={"Location": elsewhere.url + "/x"})]))
    verifier, _ = grader(kind, server)
    (score,) = verifier.score(items(1))
    assert score.status == "unscored" and "307" in score.explanation
    assert not elsewhere.calls


def test_the_other_name_of_the_key_works(
    serve: Callable[..., FakeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.setenv("GOOGLE_API_KEY", " other \n")
    server = serve(in_turn([OK]))
    verifier, _ = grader("gemini", server)
    verifier.score(items(1))
    assert server.calls[0].headers["x-goog-api-key"] == "other"


def test_a_local_server_needs_no_key(
    serve: Callable[..., FakeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    server = serve(in_turn([OK]))
    verifier, _ = grader("openai", server)
    assert verifier.score(items(1))[0].status == "ok"
    assert "authorization" not in server.calls[0].headers


# One protocol's own ways


def test_thinking_level_is_sent_to_gemini(serve: Callable[..., FakeApi]) -> None:
    server = serve(in_turn([OK]))
    verifier, _ = grader("gemini", server, thinking_level="low")
    verifier.score(items(1))
    config = server.calls[0].body["generationConfig"]
    assert list(config["thinkingConfig"].values()) == ["LOW"]


def test_a_schema_that_a_server_cannot_take_is_loosened(serve: Callable[..., FakeApi]) -> None:
    def strict(call: Call) -> Reply:
        if "maxLength" in json.dumps(call.body):
            return Reply(status=400, error={"message": "Invalid schema: 'maxLength' not permitted"})
        return OK

    server = serve(strict)
    verifier, _ = grader("openai", server, max_concurrency=1)
    assert [score.status for score in verifier.score(items(3))] == ["ok"] * 3
    assert len(server.calls) == 4  # learned once
    loose = server.calls[-1].body["response_format"]["json_schema"]["schema"]
    assert tuple(loose["properties"]) == ASPECTS and "maximum" not in json.dumps(loose)


def test_a_failure_sent_as_a_success_is_a_failure(serve: Callable[..., FakeApi]) -> None:
    busy, broken = Reply(error={"code": 429}), Reply(error={"message": "upstream is gone"})
    server = serve(in_turn([busy, broken, OK]))
    verifier, clock = grader("openai", server)
    assert verifier.score(items(1))[0].status == "ok"
    assert len(server.calls) == 3 and len(clock.slept) == 2


def test_more_keys_of_the_request(serve: Callable[..., FakeApi]) -> None:
    server = serve(in_turn([OK]))
    verifier, _ = grader("openai", server, extra_body={"reasoning_effort": "low", "seed": 3})
    verifier.score(items(1))
    assert (server.calls[0].body["reasoning_effort"], server.calls[0].body["seed"]) == ("low", 3)


# Rate limit and waits


def test_requests_per_minute_hold_over_all_verifiers_of_a_key(
    kind: str, serve: Callable[..., FakeApi]
) -> None:
    server = serve(in_turn([OK]))
    first, clock = grader(kind, server, requests_per_minute=3, max_concurrency=1)
    second, _ = grader(kind, server, max_concurrency=1)
    second.clock = clock  # type: ignore[misc]
    first.score(items(4))
    assert clock.slept == [60]
    second.score(items(4))
    assert clock.slept == [60, 60]  # 3 + 3 + 2 requests


def test_another_server_or_key_has_its_own_limit() -> None:
    one = rate_limit("http://a", Secret("k"))
    assert one is rate_limit("http://a", Secret("k"))
    assert one is not rate_limit("http://b", Secret("k"))
    assert one is not rate_limit("http://a", Secret("l"))


def test_no_minute_holds_more_requests_than_allowed() -> None:
    """At random moments; whatever minute is looked at."""
    rng, limit, moment, starts = random.Random(1), RateLimit(), 0.0, []
    limit.tighten(7)
    for _ in range(300):
        moment += rng.choice([0, 0, 0, 0.5, 30])
        wait = limit.reserve(lambda now=moment: now)  # type: ignore[misc]
        assert wait >= 0
        starts.append(moment + wait)
    assert starts == sorted(starts)
    assert all(late - early >= 60 - 1e-9 for early, late in zip(starts, starts[7:], strict=False))
    assert sum(late - early < 60 for early, late in zip(starts, starts[6:], strict=False)) > 10


def test_the_lowest_limit_named_holds() -> None:
    limit = RateLimit()
    assert limit.reserve(lambda: 0.0) == 0
    for per_minute in (5, 2, 9):
        limit.tighten(per_minute)
    assert [limit.reserve(lambda: 0.0) for _ in range(3)] == [0, 0, 60]


@pytest.mark.parametrize(
    ("headers", "error", "seconds"),
    [
        ({}, {}, 0),
        ({"Retry-After": "12"}, {}, 12),
        ({"retry-after": "1.5"}, {}, 1.5),
        ({"Retry-After-Ms": "250", "Retry-After": "9"}, {}, 0.25),
        ({"Retry-After": "soon"}, {}, 0),
        ({"Retry-After": "-5"}, {}, 0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, {}, 0),
        ({}, {"details": [{"@type": "x"}, {"@type": "RetryInfo", "retryDelay": "53.5s"}]}, 53.5),
        ({}, {"details": "none"}, 0),
        ({}, {"details": [7, {"retryDelay": 9}]}, 0),
    ],
)
def test_waits_are_read(headers: dict[str, str], error: dict[str, Any], seconds: float) -> None:
    assert wait_asked(headers, error) == seconds


def test_a_date_to_come_back_at_is_read() -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 <= wait_asked({"Retry-After": when}, {}) <= 31


def test_backoff_is_fully_jittered_and_bounded() -> None:
    assert [backoff(k, 0, 0.0) for k in range(9)] == [0] * 9
    assert [backoff(k, 0, 1.0) for k in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff(3, 10, 0.0) == 10 and backoff(3, 10, 1.0) == 11


@pytest.mark.parametrize("body", [None, [], {}, "text", {"error": "text"}, [{"error": {}}], 7])
def test_any_error_body_is_understood(body: Any) -> None:
    with pytest.raises(api_module.ApiFailure, match="the server said 503") as caught:
        refused(503, body, {}, str)
    assert caught.value.again


def test_an_interrupt_ends_the_wait_and_all_further_requests(
    kind: str, serve: Callable[..., FakeApi]
) -> None:
    server = serve(in_turn([Reply(fault="hang")]))
    verifier, _ = grader(kind, server, max_concurrency=2, timeout=0.5)
    main = threading.main_thread().ident
    assert main is not None
    begun = time.monotonic()
    # A shell's background jobs ignore the signal, and hand that on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            verifier.score(items(50))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 5
    time.sleep(0.6)  # both requests under way have timed out and could be asked again
    assert len(server.calls) == 2


def test_a_wait_is_cut_short_by_an_interrupt() -> None:
    wake = threading.Event()
    threading.Timer(0.05, wake.set).start()
    begun = time.monotonic()
    api_module.Clock().sleep(30, wake)
    assert time.monotonic() - begun < 5


# Options


def test_options_of_tt_scale_flux_are_taken(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Grade.", encoding="utf-8")
    GRADERS[kind](max_new_tokens=800, model_name="m", prompt_path=str(path), seed=1994).check()


def test_the_key_is_no_option(kind: str) -> None:
    assert not [f.name for f in fields(GRADERS[kind]) if "key" in f.name or "secret" in f.name]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "fast"}, "full or scores_only"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1, not 0"),
        ({"max_new_tokens": 1.5}, "whole number"),
        ({"max_concurrency": 0}, "from 1"),
        ({"max_concurrency": True}, "whole number"),
        ({"requests_per_minute": 0}, "requests_per_minute must be"),
        ({"max_retries": -1}, "from 0"),
        ({"timeout": "60"}, "timeout must be a number from 0.1 to 3600, not '60'"),
        ({"timeout": math.nan}, "not nan"),
        ({"temperature": 3}, "from 0 to 2"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"input_price": -1}, "input_price"),
        ({"model_name": ""}, "model_name is empty"),
        ({"base_url": "localhost:8000"}, "an address like http://"),
        ({"base_url": "http://:x"}, "an address like http://"),
        ({"base_url": "http://user:word@host/v1"}, "no key or password"),
        ({"base_url": "http://host/v1?key=secret"}, "no key or password"),
        ({"prompt_path": "no/such/file.txt"}, "There is no file"),
        ({"prompt_path": "tests"}, "cannot be read"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str, kind: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        GRADERS[kind](**options).check()
    assert "word" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"extra_body": []}, "an object"),
        ({"extra_body": {"messages": []}}, "cannot set 'messages'"),
    ],
)
def test_more_keys_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        OpenAICompatible(**options).check()


def test_thinking_level_is_checked() -> None:
    with pytest.raises(UserError, match="minimal, low, medium or high, not 'deep'"):
        Gemini(thinking_level="deep").check()  # type: ignore[arg-type]


def test_a_missing_key_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", " ")
    monkeypatch.delenv("OPENAI_API_KEY")
    name = "GEMINI_API_KEY" if kind == "gemini" else "OPENAI_API_KEY"
    with pytest.raises(UserError, match=f"set the environment variable {name}"):
        GRADERS[kind]().check()


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_a_header_is_not_quoted(
    key: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", key)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="copy the key again") as caught:
        GRADERS[kind]().check()
    assert key not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("verifiers.gemini.find_spec", absent)
    with pytest.raises(UserError, match="pip install 'google-genai"):
        Gemini().check()


@pytest.mark.slow
def test_five_hundred_images_on_a_bad_day(kind: str, serve: Callable[..., FakeApi]) -> None:
    """20 % of requests refused, 5 % broken, 2 % hang, 2 % blocked, 2 % malformed."""
    rolls = [("busy", 0.20), ("broken", 0.05), ("hang", 0.02), ("blocked", 0.02), ("odd", 0.02)]
    done: Counter[str] = Counter()
    lock = threading.Lock()

    def day(call: Call) -> Reply:
        roll = random.Random(f"{call.image} {call.attempt}").random()
        bounds = accumulate(share for _, share in rolls)
        name = next((n for (n, _), b in zip(rolls, bounds, strict=True) if roll < b), "ok")
        with lock:
            done[name] += 1
        return {
            "busy": BUSY, "broken": BROKEN, "hang": Reply(fault="hang"),
            "blocked": Reply(ending="blocked"), "odd": Reply("hm"),
            "ok": Reply(grading(call.image % 101 / 10)),
        }[name]  # fmt: skip

    server = serve(day, hangs=30)
    verifier, _ = grader(kind, server, timeout=2, requests_per_minute=100_000)
    scores = verifier.score(items(500))
    assert all(done[name] > 0 for name, _ in rolls)
    assert len(scores) == 500
    attempts = Counter(call.image for call in server.calls)
    for image, score in enumerate(scores):
        assert score.status in ("ok", "blocked", "unscored")
        assert score.details["attempts"] == attempts[image]
        if score.status == "ok":
            assert score.value == image % 101 / 10
    statuses = Counter(score.status for score in scores)
    assert statuses["ok"] >= 470 and 1 <= statuses["blocked"] <= 30 and statuses["unscored"] <= 5
    odd = Counter(c.image for c in server.calls if "could not be used" in c.texts[-1])
    for image, times in server.answered.items():
        assert times == 1 or (image in odd and times == 2)  # paid twice only to mend an answer
    assert set(server.answered) >= {i for i, s in enumerate(scores) if s.status == "ok"}
