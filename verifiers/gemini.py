"""Google's Gemini as a grader."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from utils import UserError
from verifiers.api import Answer, ApiFailure, Ending, refused
from verifiers.grading import ApiGrader
from verifiers.rubric import Question

BLOCKED = {
    "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "ESCALATION", "PUP_LIMITED_DISABLED",
    "MODEL_ARMOR",
}  # fmt: skip
TRUNCATED = {"MAX_TOKENS", "CONTINUATION"}


@dataclass
class Gemini(ApiGrader):
    """A Gemini model, through google-genai; the key is in GEMINI_API_KEY or GOOGLE_API_KEY.

    thinking_level: minimal, low, medium or high, as far as the model has it; unset, its own.
    temperature, seed: null leaves them to the model; Google advises against a temperature.
    """

    model_name: str = "gemini-3.8-flash"
    thinking_level: Literal["minimal", "low", "medium", "high"] | None = None

    needs: ClassVar[str] = "google-genai and GEMINI_API_KEY"
    home: ClassVar[str] = "https://generativelanguage.googleapis.com"
    keys: ClassVar[tuple[str, ...]] = ("GEMINI_API_KEY", "GOOGLE_API_KEY")

    def check(self) -> None:
        if not _installed():
            raise UserError(
                "The verifier 'gemini' needs google-genai: run pip install 'google-genai>=3.4'."
            )
        if self.thinking_level not in (None, "minimal", "low", "medium", "high"):
            raise UserError(
                "verifier_args.thinking_level is minimal, low, medium or high, not"
                f" '{self.thinking_level}'."
            )
        super().check()

    def _connect(self) -> None:
        import httpx2
        from google import genai
        from google.genai import types

        # A client of our own: redirects would carry the key to another host, and its exceptions
        # are known whichever library the SDK would choose. The SDK itself retries nothing.
        carrier = httpx2.Client(
            timeout=self.timeout,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=self.max_concurrency),
        )
        options = types.HttpOptions(
            base_url=self.base_url, timeout=round(self.timeout * 1000), httpx_client=carrier
        )
        self._client = genai.Client(
            api_key=self._secret.reveal(), vertexai=False, http_options=options
        )
        self._config = types.GenerateContentConfig(
            system_instruction=self._rubric.system,
            response_mime_type="application/json",
            response_schema=_ordered(self._rubric.schema),
            seed=self.seed,
            temperature=self.temperature,
            thinking_config=self._thinking(),
        )

    def _thinking(self) -> Any:
        from google.genai import types

        if self.thinking_level is None:
            return None
        return types.ThinkingConfig(thinking_level=types.ThinkingLevel(self.thinking_level))

    def _ask(self, question: Question, cap: int) -> Answer:
        import httpx2
        from google.genai import errors, types

        parts = [
            types.Part.from_bytes(data=part, mime_type="image/png")
            if isinstance(part, bytes)
            else types.Part.from_text(text=part)
            for part in question.parts
        ]
        try:
            response = self._client.models.generate_content(
                model=self.model_name,
                contents=types.Content(role="user", parts=parts),
                config=self._config.model_copy(update={"max_output_tokens": cap}),
            )
        except errors.APIError as error:
            headers = dict(getattr(error.response, "headers", None) or {})
            return refused(error.code, error.details, headers, self._secret.hide)
        except httpx2.TimeoutException:
            raise ApiFailure(f"no answer within {self.timeout:g} s", again=True) from None
        except httpx2.HTTPError as error:
            name = type(error).__name__
            raise ApiFailure(f"the connection was lost ({name})", again=True) from None
        except ValueError as error:
            name = type(error).__name__
            raise ApiFailure(f"the server's answer is unreadable ({name})", again=True) from None
        return _answer(response)


def _installed() -> bool:
    try:
        return find_spec("google.genai") is not None
    except ModuleNotFoundError:  # not even the package `google`
        return False


def _ordered(schema: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema in Gemini's dialect, which writes keys in the order that is named."""
    if "properties" not in schema:
        return schema
    inner = {name: _ordered(part) for name, part in schema["properties"].items()}
    return {
        "type": schema["type"],
        "properties": inner,
        "required": schema["required"],
        "propertyOrdering": list(inner),
    }


def _answer(response: Any) -> Answer:
    """What is in a response; thoughts are paid for as output."""
    usage = response.usage_metadata
    spent = (usage.candidates_token_count, usage.thoughts_token_count) if usage else ()
    counted = [tokens for tokens in spent if tokens is not None]
    feedback = response.prompt_feedback
    candidate = response.candidates[0] if response.candidates else None
    blocked = _word(feedback.block_reason) if feedback else ""
    reason = blocked or (_word(candidate.finish_reason) if candidate else "")
    ended: Ending = "done"
    if blocked or reason in BLOCKED:
        ended = "blocked"
    elif reason in TRUNCATED:
        ended = "truncated"
    return Answer(
        text=_text(candidate),
        ending=ended,
        reason=reason,
        model=response.model_version or "",
        input_tokens=usage.prompt_token_count if usage else None,
        output_tokens=sum(counted) if counted else None,
    )


def _word(reason: Any) -> str:
    return str(getattr(reason, "value", reason) or "")


def _text(candidate: Any) -> str:
    """The text of a candidate, without its thoughts."""
    content = candidate.content if candidate else None
    parts = (content.parts if content else None) or ()
    return "".join(part.text or "" for part in parts if not part.thought)
