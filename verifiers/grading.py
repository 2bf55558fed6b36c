"""Graders behind an API: many images at a time, in order, whatever the server does."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar

from utils import UserError, png_bytes
from verifiers.api import Answer, ApiFailure, Clock, Refusal, Secret, rate_limit, with_retries
from verifiers.base import BaseVerifier, Item, Score
from verifiers.rubric import ASPECTS, GradingError, Mode, Question, Rubric

logger = logging.getLogger(__name__)

WIDER = 4  # the cap's factor after an answer that was cut off
SHOWN = 500  # characters kept of an answer that could not be used
REMEDIES: dict[Refusal, str] = {
    "key": "check the environment variable {key}",
    "model": "mend verifier_args.model_name or verifier_args.base_url",
    "quota": "raise the account's quota or wait for its next day",
}


@dataclass
class Tally:
    """What one image has cost so far."""

    attempts: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    model: str = ""

    def add(self, answer: Answer) -> None:
        self.model = answer.model or self.model
        if answer.input_tokens is not None:
            self.input_tokens = (self.input_tokens or 0) + answer.input_tokens
        if answer.output_tokens is not None:
            self.output_tokens = (self.output_tokens or 0) + answer.output_tokens


@dataclass
class ApiGrader(BaseVerifier):
    """A VLM behind an API that grades images by the rubric.

    mode: full has a reason written before each score, scores_only the numbers alone (cheaper,
    less thoughtful). prompt_path: a text file with your own rubric for the same aspects.
    max_new_tokens: of an answer; thinking_tokens may come on top of it, for models that think.
    requests_per_minute: over the whole process, for all verifiers of one key and server.
    timeout: seconds a request. input_price, output_price: dollars per million tokens; with both,
    records carry each image's cost.
    """

    model_name: str = ""
    base_url: str | None = None
    mode: Mode = "full"
    prompt_path: str | None = None
    max_new_tokens: int = 800
    thinking_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = 0
    max_concurrency: int = 8
    requests_per_minute: int | None = None
    max_retries: int = 5
    timeout: float = 60.0
    input_price: float | None = None
    output_price: float | None = None

    metrics: ClassVar[tuple[str, ...]] = ASPECTS
    explains: ClassVar[bool] = True
    clock: ClassVar[Clock] = Clock()
    home: ClassVar[str]  # the server where none is named
    keys: ClassVar[tuple[str, ...]]  # environment variables, the first found is used

    def _connect(self) -> None:
        """Open the client; `_secret` is known."""
        raise NotImplementedError

    def _ask(self, question: Question, cap: int) -> Answer:
        """One request of at most `cap` tokens; raises `ApiFailure` if it has no answer."""
        raise NotImplementedError

    def _thinking_allowance(self) -> int:
        """Tokens for thought where the user names none."""
        return 4096

    def _needs_key(self) -> bool:
        return True

    @property
    def remote(self) -> bool:
        return True

    @property
    def rubric_hash(self) -> str:
        """Names the question asked, for the records."""
        return Rubric.read(self.prompt_path, self.mode).hash

    def check(self) -> None:
        if self.mode not in ("full", "scores_only"):
            raise UserError(f"verifier_args.mode is full or scores_only, not '{self.mode}'.")
        for name, least, most, whole in _RANGES:
            _check_number(name, getattr(self, name), least, most, whole)
        if not self.model_name:
            raise UserError("verifier_args.model_name is empty: name a model of the server.")
        self._check_url()
        Rubric.read(self.prompt_path, self.mode)
        self._key()

    def _check_url(self) -> None:
        url = self.base_url
        if url is None:
            return
        if "@" in url or "?" in url:
            raise UserError(
                f"verifier_args.base_url must carry no key or password: set {self.keys[0]} instead."
            )
        if not re.fullmatch(
            r"https?://[\w.-]+(:\d{1,5})?(/[\w./~-]*)?|https?://\[[\w:.]+\].*", url
        ):
            raise UserError(
                f"verifier_args.base_url is an address like http://127.0.0.1:8000/v1, not '{url}'."
            )

    def _key(self) -> Secret:
        """The key in the environment; empty if there is none and none is needed."""
        for name in self.keys:
            key = os.environ.get(name, "").strip()
            if key and not (key.isascii() and key.isprintable() and " " not in key):
                raise UserError(f"{name} holds characters that no key has: copy the key again.")
            if key:
                return Secret(key)
        if self._needs_key():
            raise UserError(
                f"The model '{self.model_name}' needs a key: set the environment variable"
                f" {self.keys[0]}."
            )
        return Secret("")

    def load(self, device: str) -> None:
        self._secret = self._key()
        self._rubric = Rubric.read(self.prompt_path, self.mode)
        self._limit = rate_limit(self.base_url or self.home, self._secret)
        if self.requests_per_minute is not None:
            self._limit.tighten(self.requests_per_minute)
        self._connect()

    def score(self, items: Sequence[Item]) -> list[Score]:
        scores = {i: score for i, item in enumerate(items) if (score := item.recall()) is not None}
        left = [i for i in range(len(items)) if i not in scores]
        failures: list[ApiFailure | None] = [None] * len(scores)
        with closing(self._judged({i: items[i] for i in left})) as judged:
            for i, (score, failure) in judged:
                items[i].keep(score)
                scores[i] = score
                failures.append(failure)
        self._raise_if_all_refused(failures)
        return [scores[i] for i in range(len(items))]

    def _judged(
        self, items: Mapping[int, Item]
    ) -> Generator[tuple[int, tuple[Score, ApiFailure | None]], None, None]:
        """Each item's score as it arrives."""
        if not items:
            return
        stop = threading.Event()
        pool = ThreadPoolExecutor(min(self.max_concurrency, len(items)), "grader")
        try:
            asked = {pool.submit(self._judge, item, stop): i for i, item in items.items()}
            for future in as_completed(asked):
                yield asked[future], future.result()
        finally:
            stop.set()  # after Ctrl-C nothing more is asked and paid for
            pool.shutdown(wait=False, cancel_futures=True)

    def _raise_if_all_refused(self, failures: Sequence[ApiFailure | None]) -> None:
        """One refused image is that image's loss; if all are, the config or the key is wrong."""
        refused = [failure for failure in failures if failure and failure.refusal]
        if refused and len(refused) == len(failures):
            remedy = REMEDIES[refused[0].refusal].format(key=self.keys[0])
            raise UserError(
                f"No image can be graded by '{self.model_name}', {refused[0]}: {remedy}."
            )

    def _judge(self, item: Item, stop: threading.Event) -> tuple[Score, ApiFailure | None]:
        """The score of one item, and why the server gave none; never raises."""
        tally = Tally()
        try:
            question = self._rubric.question(item.prompt, rgb_png(item.media))
        except Exception as error:
            why = f"the image cannot be sent ({type(error).__name__}: {error})"
            return Score.missing(why, "invalid_image"), None
        try:
            return self._graded(question, tally, stop), None
        except ApiFailure as failure:
            return Score.missing(str(failure), details=self._details(tally)), failure
        except Exception as error:
            why = self._secret.hide(f"{type(error).__name__}: {error}")
            logger.warning("A grader failed on one image: %s", why)
            return Score.missing(why, "failed", self._details(tally)), None

    def _graded(self, question: Question, tally: Tally, stop: threading.Event) -> Score:
        """Asks once more after an answer that was cut off, and once after one that is unusable."""
        thought = (
            self._thinking_allowance() if self.thinking_tokens is None else self.thinking_tokens
        )
        cap, widened, mended = self.max_new_tokens + thought, False, False
        while True:
            answer = self._answer(question, cap, tally, stop)
            if answer.ending == "blocked":
                why = f"the server blocked the image or the prompt ({answer.reason})"
                return Score.missing(why, "blocked", self._details(tally))
            try:
                return self._rubric.score(answer.text, self._details(tally))
            except GradingError as error:
                cut = answer.ending == "truncated"
                if widened if cut else mended:
                    return self._unusable(answer, error, tally)
                if cut:
                    cap, widened = WIDER * cap, True
                else:
                    question, mended = question.again(error), True

    def _answer(self, question: Question, cap: int, tally: Tally, stop: threading.Event) -> Answer:
        def once() -> Answer:
            self.clock.sleep(self._limit.reserve(self.clock.now), stop)
            if stop.is_set():
                raise ApiFailure("the run was interrupted")
            tally.attempts += 1
            return self._ask(question, cap)

        answer = with_retries(once, retries=self.max_retries, clock=self.clock, stop=stop)
        tally.add(answer)
        return answer

    def _unusable(self, answer: Answer, error: GradingError, tally: Tally) -> Score:
        begin = self._secret.hide(answer.text)[:SHOWN]
        details = {**self._details(tally), "answer": begin}
        if answer.ending == "truncated":
            why = "the answer was cut off twice: raise verifier_args.max_new_tokens"
            return Score.missing(why, "truncated", details)
        return Score.missing(f"the answer is no grading: {error}", "unscored", details)

    def _details(self, tally: Tally) -> dict[str, Any]:
        details: dict[str, Any] = {
            "model": tally.model or self.model_name,
            "input_tokens": tally.input_tokens,
            "output_tokens": tally.output_tokens,
            "attempts": tally.attempts,
        }
        if self.input_price is not None and self.output_price is not None:
            spent = (tally.input_tokens or 0) * self.input_price
            spent += (tally.output_tokens or 0) * self.output_price
            details["cost"] = round(spent / 1e6, 9)
        return details


_RANGES = (  # option, least, most, whole
    ("max_new_tokens", 1, math.inf, True),
    ("thinking_tokens", 0, math.inf, True),
    ("temperature", 0, 2, False),
    ("seed", -(2**31), 2**31 - 1, True),
    ("max_concurrency", 1, 1000, True),
    ("requests_per_minute", 1, math.inf, True),
    ("max_retries", 0, math.inf, True),
    ("timeout", 0.1, 3600, False),
    ("input_price", 0, math.inf, False),
    ("output_price", 0, math.inf, False),
)
_OPTIONAL = {"thinking_tokens", "temperature", "seed", "requests_per_minute", "input_price",
             "output_price"}  # fmt: skip


def _check_number(name: str, value: Any, least: float, most: float, whole: bool) -> None:
    if value is None and name in _OPTIONAL:
        return
    kinds = (int,) if whole else (int, float)
    if type(value) in kinds and least <= value <= most:
        return
    kind, end = "whole number" if whole else "number", f" to {most}" if most < math.inf else ""
    raise UserError(f"verifier_args.{name} must be a {kind} from {least}{end}, not {value!r}.")


def rgb_png(image: Any) -> bytes:
    """PNG of any PIL image, as every judge reads it."""
    return png_bytes(image.convert("RGB"))
