"""A vision-language model in this process as a grader; outlines holds its answers to JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar, get_args

from utils import UserError
from verifiers.base import Item, Score
from verifiers.rubric import ASPECTS, GradingError, Mode, Rubric
from verifiers.vlm import Vlm, VlmVerifier

PACKAGES = ("outlines", "llguidance")
FINEST = 0.1  # a score's last digit
SHOWN = 500  # characters kept of an answer that could not be used


@dataclass
class Qwen(VlmVerifier):
    """Qwen2.5-VL, Qwen3-VL or another image-text-to-text model as a grader.

    max_new_tokens: the longest answer; one that is cut off by it is no answer. mode: full, with a
    reason before each score, or scores_only, in a tenth of the time. prompt_path: a text file in
    place of our rubric. temperature: 0 takes the likeliest answer; above, one is drawn by `seed`.
    """

    max_new_tokens: int = 800
    mode: Mode = "full"
    prompt_path: str | None = None
    temperature: float = 0.0
    seed: int = 0

    metrics: ClassVar[tuple[str, ...]] = ASPECTS
    needs: ClassVar[str] = (
        "outlines and llguidance; the weights of a vision-language model (model_name)"
    )
    explains: ClassVar[bool] = True

    _rubric: Any = field(default=None, init=False, repr=False)
    _grammar: Any = field(default=None, init=False, repr=False)

    @property
    def rubric_hash(self) -> str:
        """Names the question asked, for the records."""
        return Rubric.read(self.prompt_path, self.mode).hash

    def check(self) -> None:
        for package in PACKAGES:
            if find_spec(package) is None:
                raise UserError(
                    f"The package '{package}' is missing, which keeps a model's answers to JSON:"
                    " run pip install -r requirements.txt."
                )
        super().check()
        if self.mode not in get_args(Mode):
            raise UserError(f"verifier_args.mode is full or scores_only, not '{self.mode}'.")
        if self.max_new_tokens < 1 or self.temperature < 0:
            raise UserError(
                "verifier_args.max_new_tokens must be at least 1 and temperature at least 0."
            )
        Rubric.read(self.prompt_path, self.mode)

    def load(self, device: str) -> None:
        self._rubric = Rubric.read(self.prompt_path, self.mode)
        super().load(device)
        self._grammar = json_grammar(self._vlm, decodable(self._rubric.schema))

    def _inputs(self, items: Sequence[Item]) -> Any:
        asked = []
        for item in items:
            parts = self._rubric.question(item.prompt, b"").parts
            asked.append([part if isinstance(part, str) else item.media for part in parts])
        return self._vlm.inputs(asked, self._rubric.system)

    def _answers(self, inputs: Any) -> list[Score]:
        written = self._write(inputs)[:, inputs["input_ids"].shape[1] :]
        return [self._graded(tokens) for tokens in written.tolist()]

    def _write(self, inputs: Any) -> Any:
        """The model's answers behind its inputs, as token ids [n, ...]."""
        import torch

        draws = self.temperature > 0
        how = {"temperature": self.temperature, "top_k": 0} if draws else {}
        self._grammar.reset()
        with (
            # Grading must not move anyone's global noise.
            torch.random.fork_rng(range(torch.cuda.device_count()), enabled=draws),
            warnings.catch_warnings(),
        ):
            # In a batch the first to end are padded, and the grammar complains of the padding.
            warnings.filterwarnings("ignore", "Error in LLMatcher")
            if draws:
                torch.manual_seed(self.seed)
            return self._vlm.model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                logits_processor=[self._grammar],
                do_sample=draws,
                **how,
            )

    def _graded(self, tokens: list[int]) -> Score:
        """The score in an answer; behind its end the batch's padding follows."""
        tokenizer = self._vlm.processor.tokenizer
        ended = tokenizer.eos_token_id in tokens
        used = tokens.index(tokenizer.eos_token_id) + 1 if ended else len(tokens)
        text = tokenizer.decode(tokens[:used], skip_special_tokens=True)
        details: dict[str, Any] = {"model": self.model_name, "output_tokens": used}
        try:
            score: Score = self._rubric.score(text, details)
        except GradingError as error:
            details["answer"] = text[:SHOWN]
            if ended:
                return Score.missing(f"the answer is no grading: {error}", "unscored", details)
            why = f"the answer was cut off after {used} tokens: raise verifier_args.max_new_tokens"
            return Score.missing(why, "truncated", details)
        return score


def decodable(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema for a model that may write nothing else, and must come to an end.

    JSON allows endless space between tokens and endless digits behind a point: here one space,
    where most JSON has it, and one digit.
    """
    spaces = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
    return {**_finite(schema), "x-guidance": spaces}


def _finite(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") == "number":
        return {**schema, "multipleOf": FINEST}
    inner = schema.get("properties", {})
    return {**schema, "properties": {k: _finite(v) for k, v in inner.items()}} if inner else schema


def json_grammar(vlm: Vlm, schema: dict[str, Any]) -> Any:
    """A logits processor that leaves only tokens which continue JSON of this schema.

    llguidance works out its masks as it goes. outlines' own index is worked out beforehand, and
    holds every token for every character an explanation may have: gigabytes and a minute.
    """
    import llguidance.torch as masks
    import outlines
    import torch
    import torch._dynamo as dynamo
    from outlines.types import JsonSchema

    # A handful of small operations, which take seconds to compile. To set the compiler's stance
    # around an answer would stop every thread's graphs: those of a denoiser on another device.
    masks.apply_token_bitmask_inplace_kernel = torch.compiler.disable(
        masks.apply_token_bitmask_inplace_kernel
    )
    silent = dynamo.config.suppress_errors
    model = outlines.from_transformers(vlm.model, vlm.processor.tokenizer)
    generator: Any = outlines.Generator(model, JsonSchema(json.dumps(schema)), backend="llguidance")
    dynamo.config.suppress_errors = silent  # outlines hides the compiler's errors from everyone
    return generator.logits_processor
