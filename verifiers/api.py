"""Asking a server over the network: its refusals, when to ask again, and how often at most."""

from __future__ import annotations

import math
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

from utils import digest

LONGEST_WAIT = 120.0  # seconds; a server that asks for more is out for today
LONGEST_BACKOFF = 60.0  # seconds
BLOCKS = {"content_filter", "content_policy_violation", "moderation_blocked", "invalid_prompt"}

Ending = Literal["done", "truncated", "blocked"]
Refusal = Literal["", "key", "model", "quota"]
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What a server answered, whatever its protocol; token counts are None where it gave none."""

    text: str
    ending: Ending = "done"
    reason: str = ""
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None


class ApiFailure(Exception):
    """A request without an answer.

    again: whether asking once more may help, and then not before `wait` seconds have passed.
    refusal: what of the whole verifier the server refuses, if it is not this request alone.
    """

    def __init__(
        self, said: str, *, again: bool = False, wait: float = 0.0, refusal: Refusal = ""
    ) -> None:
        super().__init__(said)
        self.again = again
        self.wait = wait
        self.refusal: Refusal = refusal


class Clock:
    """Time and chance; tests bring their own, and need not wait."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float, wake: threading.Event) -> None:
        wake.wait(seconds)

    def chance(self) -> float:
        return random.SystemRandom().random()  # the global generator belongs to the run's seeds


class Secret:
    """An API key that shows itself to no one but who asks for it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def reveal(self) -> str:
        return self._text

    def hide(self, text: str) -> str:
        """The text without the key, for servers that quote it."""
        return text.replace(self._text, "***") if self._text else text


class RateLimit:
    """At most so many requests in any 60 seconds, over all threads and verifiers of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starts: deque[float] | None = None

    def tighten(self, per_minute: int) -> None:
        """The lowest limit that anyone names holds for everyone."""
        with self._lock:
            known = self._starts
            if known is None or known.maxlen is None or per_minute < known.maxlen:
                self._starts = deque(known or (), maxlen=per_minute)

    def reserve(self, now: Callable[[], float]) -> float:
        """Seconds to wait before the request that is hereby counted."""
        with self._lock:
            moment = now()
            if self._starts is None:
                return 0.0
            full = len(self._starts) == self._starts.maxlen
            start = max(moment, self._starts[0] + 60) if full else moment
            self._starts.append(start)
            return start - moment


_limits: dict[str, RateLimit] = {}
_limits_lock = threading.Lock()


def rate_limit(endpoint: str, key: Secret) -> RateLimit:
    """The one limit of an endpoint and a key."""
    with _limits_lock:
        return _limits.setdefault(digest(f"{endpoint}\x1f{key.reveal()}"), RateLimit())


def with_retries(ask: Callable[[], T], *, retries: int, clock: Clock, stop: threading.Event) -> T:
    """The answer, asking again with full-jitter backoff where that may help."""
    tries = 0
    while True:
        try:
            return ask()
        except ApiFailure as failure:
            if not failure.again or tries >= retries:
                raise
            if failure.wait > LONGEST_WAIT:
                raise ApiFailure(
                    f"{failure}; the server asks to wait {failure.wait:.0f} s"
                ) from None
            delay = backoff(tries, failure.wait, clock.chance())
        tries += 1
        clock.sleep(delay, stop)
        if stop.is_set():
            raise ApiFailure("the run was interrupted")


def backoff(tries: int, asked: float, chance: float) -> float:
    """Seconds before asking again: the server's own, and some more so that threads part."""
    spread: float = min(LONGEST_BACKOFF, 2.0**tries)
    return asked + chance * (min(1.0, spread) if asked else spread)


def refused(
    status: int, body: Any, headers: Mapping[str, str], hide: Callable[[str], str]
) -> Answer:
    """What an HTTP error means: blocked content is an answer, all else raises `ApiFailure`."""
    error = _error(body)
    code = str(error.get("code") or error.get("type") or "")
    message = " ".join(hide(str(error.get("message") or "")).split())[:200]
    said = f"the server said {status}" + (f": {message}" if message else "")
    if code in BLOCKS:
        return Answer("", "blocked", reason=code)
    if status in (401, 403) or _named(error, "reason") == "API_KEY_INVALID":
        raise ApiFailure(f"the server refused the key ({status})", refusal="key")
    if status == 404:
        raise ApiFailure(said, refusal="model")
    if code == "insufficient_quota" or "PerDay" in str(_named(error, "violations")):
        raise ApiFailure(said, refusal="quota")
    again = status in (408, 429) or status >= 500
    raise ApiFailure(said, again=again, wait=wait_asked(headers, error))


def wait_asked(headers: Mapping[str, str], error: Mapping[str, Any]) -> float:
    """Seconds that a server asks to wait, by header or by google.rpc.RetryInfo; 0 for no word."""
    named = {name.lower(): value.strip() for name, value in headers.items()}
    if "retry-after-ms" in named:
        return _seconds(named["retry-after-ms"]) / 1000
    if "retry-after" in named:
        return _seconds(named["retry-after"]) or _until(named["retry-after"])
    delay = _named(error, "retryDelay")
    return _seconds(delay.removesuffix("s")) if isinstance(delay, str) else 0.0


def _seconds(text: str) -> float:
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d+)?", text) else 0.0


def _until(date: str) -> float:
    try:
        when = parsedate_to_datetime(date)
    except ValueError:
        return 0.0
    return max(0.0, math.ceil((when.astimezone(UTC) - datetime.now(UTC)).total_seconds()))


def _error(body: Any) -> Mapping[str, Any]:
    """The error in a body, as Google, OpenAI and their imitators nest it."""
    if isinstance(body, list) and body:
        body = body[0]
    found = body.get("error", body) if isinstance(body, dict) else {}
    return found if isinstance(found, dict) else {"message": found}


def _named(error: Mapping[str, Any], name: str) -> Any:
    """What Google's details of an error hold under this name, in whichever of them."""
    details = error.get("details")
    found = (
        (d.get(name) for d in details if isinstance(d, dict)) if isinstance(details, list) else ()
    )
    return next((value for value in found if value), None)
