"""Any server that speaks OpenAI's chat completions as a grader: OpenAI, vLLM, SGLang, others."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from utils import UserError
from verifiers.api import Answer, ApiFailure, Ending, refused
from verifiers.grading import ApiGrader
from verifiers.rubric import Question

ENDINGS: dict[str, Ending] = {"length": "truncated", "content_filter": "blocked"}
OWN = {"model", "messages", "response_format", "max_completion_tokens", "stream", "n"}


@dataclass
class OpenAICompatible(ApiGrader):
    """A vision-language model behind chat completions; the key, if any, is in OPENAI_API_KEY.

    base_url: of your own server, as http://127.0.0.1:8000/v1; unset, OpenAI's.
    thinking_tokens: 4096 at OpenAI and 0 elsewhere, where nothing is said.
    temperature, seed: null leaves them to the server; models that reason refuse a temperature.
    extra_body: more keys of the request, as {"reasoning_effort": "low"}.
    """

    model_name: str = "gpt-6-luna"
    extra_body: dict[str, Any] = field(default_factory=dict)

    needs: ClassVar[str] = "OPENAI_API_KEY, or a base_url of your own"
    home: ClassVar[str] = "https://api.openai.com/v1"
    keys: ClassVar[tuple[str, ...]] = ("OPENAI_API_KEY",)

    def _needs_key(self) -> bool:
        return self.base_url is None

    def _thinking_allowance(self) -> int:
        return 4096 if self.base_url is None else 0  # a local context may be short of room

    def check(self) -> None:
        if not isinstance(self.extra_body, dict):
            raise UserError("verifier_args.extra_body must be an object of keys and values.")
        clash = sorted(OWN & self.extra_body.keys())
        if clash:
            raise UserError(f"verifier_args.extra_body cannot set '{clash[0]}'.")
        super().check()

    def _connect(self) -> None:
        import httpx2

        key = self._secret.reveal()
        self._url = (self.base_url or self.home).rstrip("/") + "/chat/completions"
        self._loose = False
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=self.timeout,
            follow_redirects=False,  # a redirect would carry the images elsewhere
            limits=httpx2.Limits(max_connections=self.max_concurrency),
        )

    def _ask(self, question: Question, cap: int) -> Answer:
        import httpx2

        loose = self._loose
        try:
            response = self._client.post(self._url, json=self._body(question, cap, loose))
        except httpx2.TimeoutException:
            raise ApiFailure(f"no answer within {self.timeout:g} s", again=True) from None
        except httpx2.HTTPError as error:
            name = type(error).__name__
            raise ApiFailure(f"the connection was lost ({name})", again=True) from None
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.status_code == 400 and not loose and "schema" in response.text.lower():
            self._loose = True  # some servers refuse limits on lengths and ranges
            return self._ask(question, cap)
        if response.status_code != 200:
            return refused(response.status_code, body, response.headers, self._secret.hide)
        if not isinstance(body, dict):
            raise ApiFailure("the server's answer is unreadable", again=True)
        if "error" in body and not body.get("choices"):  # some gateways send failures as successes
            return refused(_status(body["error"]), body, response.headers, self._secret.hide)
        return _answer(body)

    def _body(self, question: Question, cap: int, loose: bool) -> dict[str, Any]:
        schema = _loosened(self._rubric.schema) if loose else self._rubric.schema
        asked = {
            "model": self.model_name,
            "messages": [
                {"role": "system", "content": question.rubric},
                {"role": "user", "content": [_part(part) for part in question.parts]},
            ],
            "max_completion_tokens": cap,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "grading", "strict": True, "schema": schema},
            },
        }
        chosen = {"temperature": self.temperature, "seed": self.seed}
        return {
            **asked,
            **{name: value for name, value in chosen.items() if value is not None},
            **self.extra_body,
        }


def _part(part: str | bytes) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = "data:image/png;base64," + base64.b64encode(part).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def _loosened(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without limits; the rubric names them, and the parser holds to the scores'."""
    kept = {k: v for k, v in schema.items() if k not in ("minimum", "maximum", "maxLength")}
    if "properties" in kept:
        kept["properties"] = {name: _loosened(p) for name, p in kept["properties"].items()}
    return kept


def _answer(body: Mapping[str, Any]) -> Answer:
    """What is in a completion; a refusal in words counts as blocked."""
    choices = body.get("choices") or [{}]
    message = choices[0].get("message") or {}
    reason = str(choices[0].get("finish_reason") or "")
    usage = body.get("usage") or {}
    return Answer(
        text=_text(message.get("content")),
        ending="blocked" if message.get("refusal") else ENDINGS.get(reason, "done"),
        reason="refusal" if message.get("refusal") else reason,
        model=str(body.get("model") or ""),
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
    )


def _count(tokens: Any) -> int | None:
    return tokens if isinstance(tokens, int) else None


def _status(error: Any) -> int:
    """The HTTP status that a gateway names inside its error."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 502


def _text(content: Any) -> str:
    """A message's text, which some servers send in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
