"""A grader's server on this machine: it speaks Gemini's protocol and OpenAI's, and misbehaves."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from PIL import Image

from verifiers.rubric import ASPECTS

MODEL = "judge-001"
INPUT_TOKENS, OUTPUT_TOKENS = 300, 100


def picture(number: int) -> Image.Image:
    """An image that the server knows again by its number."""
    return Image.new("RGB", (8, 8), (number >> 16, number >> 8 & 255, number & 255))


def grading(score: Any = 7.5, **others: Any) -> str:
    """A grader's answer; `score` for every aspect that is not named."""
    grades = {name: others.get(name, score) for name in ASPECTS}
    return json.dumps(
        {name: {"explanation": f"why {name}", "score": grade} for name, grade in grades.items()}
    )


@dataclass(frozen=True)
class Reply:
    """What the server does with one request.

    ending: done, truncated, blocked, or refused (the prompt itself). fault: hang, drop, half (a
    body that ends early) or garbage (a success that is no JSON).
    """

    text: str = field(default_factory=grading)
    ending: str = "done"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class Call:
    """One request as the server saw it."""

    gemini: bool
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    image: int
    attempt: int  # of this image, from 1

    @property
    def texts(self) -> list[str]:
        """The user's texts, in order."""
        if self.gemini:
            return [part["text"] for part in self.body["contents"][0]["parts"] if "text" in part]
        return [p["text"] for p in self.body["messages"][1]["content"] if p["type"] == "text"]

    @property
    def cap(self) -> int:
        if self.gemini:
            return int(self.body["generationConfig"]["maxOutputTokens"])
        return int(self.body["max_completion_tokens"])


Script = Callable[[Call], Reply]


def in_turn(replies: Sequence[Reply]) -> Script:
    """One reply an attempt, for every image; the last for all that follow."""
    return lambda call: replies[min(call.attempt, len(replies)) - 1]


class FakeApi:
    """The server; `calls` is all it was asked, `answered` how often it graded each image."""

    def __init__(self, script: Script, hangs: float = 20.0) -> None:
        self.script, self.hangs = script, hangs
        self.calls: list[Call] = []
        self.answered: Counter[int] = Counter()
        self._attempts: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.answer(self, api.note(self.path, dict(self.headers.items()), body))

            def log_message(self, format: str, *args: Any) -> None:
                return

        return Handler

    def note(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Call:
        gemini = path.endswith(":generateContent")
        image = _number(_png(body, gemini))
        with self._lock:
            self._attempts[image] += 1
            named = {name.lower(): value for name, value in headers.items()}
            call = Call(gemini, path, named, body, image, self._attempts[image])
            self.calls.append(call)
        return call

    def answer(self, handler: BaseHTTPRequestHandler, call: Call) -> None:
        reply = self.script(call)
        if reply.fault == "hang":
            self._released.wait(self.hangs)
        if reply.fault in ("hang", "drop"):
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if reply.status == 200 and not reply.fault:
            with self._lock:
                self.answered[call.image] += 1
        rendered = _gemini(reply) if call.gemini else _openai(reply)
        payload = b"<html>hello" if reply.fault == "garbage" else json.dumps(rendered).encode()
        handler.send_response(reply.status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(payload)))
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(payload[: len(payload) // 2] if reply.fault == "half" else payload)
        handler.wfile.flush()
        if reply.fault == "half":
            handler.close_connection = True


def _png(body: Mapping[str, Any], gemini: bool) -> bytes:
    """The image in a request; its type must be told as it is."""
    if gemini:
        (part,) = [p["inlineData"] for p in body["contents"][0]["parts"] if "inlineData" in p]
        assert part["mime_type"] == "image/png"
        return base64.b64decode(part["data"], altchars=b"-_")
    parts = body["messages"][1]["content"]
    (url,) = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert url.startswith("data:image/png;base64,")
    return base64.b64decode(url.partition(",")[2])


def _number(png: bytes) -> int:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    red, green, blue = image.getpixel((0, 0))  # type: ignore[misc]
    return red << 16 | green << 8 | blue


def _gemini(reply: Reply) -> dict[str, Any]:
    if reply.status != 200:
        return {"error": {"code": reply.status, "status": "ERROR", **reply.error}}
    usage = {"promptTokenCount": INPUT_TOKENS, "candidatesTokenCount": OUTPUT_TOKENS - 20,
             "thoughtsTokenCount": 20}  # fmt: skip
    answer: dict[str, Any] = {"usageMetadata": usage, "modelVersion": MODEL}
    if reply.ending == "refused":
        return {**answer, "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
    reason = {"done": "STOP", "truncated": "MAX_TOKENS", "blocked": "IMAGE_SAFETY"}[reply.ending]
    parts = [{"text": "let me look", "thought": True}, {"text": reply.text}]
    candidate: dict[str, Any] = {"finishReason": reason}
    if reply.ending != "blocked":
        candidate["content"] = {"role": "model", "parts": parts}
    return {**answer, "candidates": [candidate]}


def _openai(reply: Reply) -> dict[str, Any]:
    if reply.status != 200 or reply.error:  # some gateways send failures as successes
        return {"error": {"type": "error", **reply.error}}
    reason = {"truncated": "length", "blocked": "content_filter"}.get(reply.ending, "stop")
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.ending == "refused":
        message = {"role": "assistant", "content": None, "refusal": "I cannot help with that"}
    return {
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS},
    }
