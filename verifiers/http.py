"""A scorer of your own behind a URL: images and prompts are posted to it, scores come back.

Request, a POST of JSON:
    {"items": [{"image": "<base64 of a PNG>", "prompt": "a red cat", "label": null}, ...]}
A video has "frames": ["<base64 of a PNG>", ...] in place of "image".

Response, a score for each item in the order asked, and if you like a word on each:
    {"scores": [0.7, {"beauty": 0.5, "fit": 0.9}, null, ...], "explanations": ["...", null, ...]}
A number is the first of `metrics`; an object gives them by name; null is no answer.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from utils import UserError, png_bytes
from verifiers.base import BaseVerifier, Item, Score

PAUSE = 0.5  # seconds before the first repeat, doubled for each further one


class _Failed(Exception):
    """A request without scores. again: it may pass if repeated. apart: an item may be to blame."""

    def __init__(self, why: str, *, again: bool = False, apart: bool = True) -> None:
        super().__init__(why)
        self.again, self.apart = again, apart


@dataclass
class HttpScorer(BaseVerifier):
    """url: where to post. metrics: what the server scores; a bare number is the first of them.

    timeout: seconds without a byte. batch_size: items a request. max_retries: repeats of a request
    that failed (no connection, no answer in time, status 408, 429 or 5xx).
    A batch that is answered wrongly, or dropped, is asked about once more item by item, so that
    one bad item costs no other its score.
    """

    url: str = ""
    metrics: tuple[str, ...] = ("score",)  # type: ignore[misc]  # each server has its own
    timeout: float = 60.0
    batch_size: int = 8
    max_retries: int = 2

    needs: ClassVar[str] = "a running HTTP server of yours"
    video: ClassVar[bool] = True

    _line: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        self.metrics = tuple(self.metrics)

    def check(self) -> None:
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UserError(f"verifier_args.url must be an http or https URL, not '{self.url}'.")
        if not self.metrics or not all(self.metrics):
            raise UserError("verifier_args.metrics must name at least one metric of the server's.")
        if self.batch_size < 1 or self.max_retries < 0 or not self.timeout > 0:
            raise UserError(
                "verifier_args.batch_size must be at least 1, max_retries 0 and timeout above 0."
            )

    @property
    def remote(self) -> bool:
        return True

    def score(self, items: Sequence[Item]) -> list[Score]:
        scores = {i: score for i, item in enumerate(items) if (score := item.recall()) is not None}
        left = [i for i in range(len(items)) if i not in scores]
        with self._line:  # the server is asked one thing at a time
            for begin in range(0, len(left), self.batch_size):
                batch = left[begin : begin + self.batch_size]
                scores |= dict(zip(batch, self._batch([items[i] for i in batch]), strict=True))
                if batch[-1] != left[-1]:  # else the whole batch is kept in a moment
                    for i in batch:
                        items[i].keep(scores[i])
        return [scores[i] for i in range(len(items))]

    def _batch(self, items: Sequence[Item]) -> list[Score]:
        posted = [_posted(item) for item in items]
        asked = [entry for entry in posted if not isinstance(entry, Score)]
        answers = iter(self._answers(asked, self.max_retries) if asked else ())
        return [entry if isinstance(entry, Score) else next(answers) for entry in posted]

    def _answers(self, posted: Sequence[Mapping[str, Any]], repeats: int) -> list[Score]:
        try:
            return self._asked(posted, repeats)
        except _Failed as error:
            if error.apart and len(posted) > 1:
                return [self._answers([entry], repeats=0)[0] for entry in posted]
            return [Score.missing(f"The scorer failed: {error}.", "failed") for _ in posted]

    def _asked(self, posted: Sequence[Mapping[str, Any]], repeats: int) -> list[Score]:
        body = json.dumps({"items": posted}).encode("ascii")
        for attempt in range(repeats):
            try:
                return self._read(self._post(body), len(posted))
            except _Failed as error:
                if not error.again:
                    raise
                time.sleep(PAUSE * 2**attempt)
        return self._read(self._post(body), len(posted))

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            passing = error.code in (408, 429) or error.code >= 500
            raise _Failed(f"status {error.code} {error.reason}", again=passing) from error
        except (http.client.HTTPException, ConnectionResetError, BrokenPipeError) as error:
            raise _Failed(f"it dropped the connection ({error!r})", again=True) from error
        except urllib.error.URLError as error:
            raise _Failed(f"no connection ({error.reason})", again=True, apart=False) from error
        except OSError as error:  # above all a timeout
            raise _Failed(f"no answer ({error})", again=True, apart=False) from error

    def _read(self, content: bytes, asked: int) -> list[Score]:
        """The scores in an answer."""
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _Failed(f"its answer is no JSON ({error})") from error
        values = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(values, list):
            raise _Failed("its answer has no list of 'scores'")
        if len(values) != asked:
            raise _Failed(f"it gave {len(values)} scores for {asked} items")
        words = answer.get("explanations")
        if not isinstance(words, list) or len(words) != asked:
            words = [None] * asked
        return [
            self._score(value, str(word or "")) for value, word in zip(values, words, strict=True)
        ]

    def _score(self, value: Any, word: str) -> Score:
        if value is None:
            return Score.missing(word or "The scorer gave no score.")
        given = value if isinstance(value, dict) else {self.metrics[0]: value}
        aspects = {n: float(given[n]) for n in self.metrics if n in given and _is_number(given[n])}
        if not aspects:
            return Score.missing(f"The scorer gave no number for {' or '.join(self.metrics)}.")
        return Score(next(iter(aspects.values())), aspects, word)


def _posted(item: Item) -> dict[str, Any] | Score:
    """An item as it is sent."""
    try:
        if isinstance(item.media, list):
            shown: dict[str, Any] = {"frames": [_base64(frame) for frame in item.media]}
        else:
            shown = {"image": _base64(item.media)}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return Score.missing(f"The image cannot be sent: {error}", "invalid_image")
    return {**shown, "prompt": item.prompt, "label": item.label}


def _base64(image: Any) -> str:
    return base64.b64encode(png_bytes(image.convert("RGB"))).decode("ascii")


def _is_number(value: Any) -> bool:
    """A finite number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308
