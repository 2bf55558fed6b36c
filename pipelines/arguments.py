"""A pipeline's call for a batch of candidates: what stands in a list with an entry for each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipelines.labels import asked_class, by_class, class_count, class_number
from utils import UserError

Parameters = Mapping[str, Any]  # of the pipeline's call, as `inspect` has them
Texts = str | Sequence[str]
"""A prompt of all candidates, or one for each."""


def each_text(prompt: Texts, n: int) -> Sequence[str]:
    """The prompt of each of n candidates."""
    texts = (prompt,) * n if isinstance(prompt, str) else prompt
    assert len(texts) == n, f"{len(texts)} prompts for {n} candidates"
    return texts


class Classes:
    """Prompts as classes, where the pipeline is class-conditional.

    configs: of its denoisers.
    """

    def __init__(
        self, pipe: Any, parameters: Parameters, configs: Sequence[Mapping[str, Any]]
    ) -> None:
        self._names = getattr(pipe, "labels", None) or {}
        self._parameters = parameters
        self._configs = configs

    def asked(self, call_args: Mapping[str, Any]) -> bool:
        return "class_labels" in call_args or by_class(self._parameters)

    def number(self, call_args: Mapping[str, Any], prompt: str) -> int:
        count = class_count(self._configs)
        return class_number(asked_class(call_args, prompt), self._names, count)


def batched(
    parameters: Parameters,
    classes: Classes,
    call_args: Mapping[str, Any],
    prompt: Texts,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """The call's arguments for a batch: its texts in lists, a generator for each seed."""
    n, texts = len(seeds), each_text(prompt, len(seeds))
    arguments = {
        name: [_only(name, value)] * n if _per_candidate(parameters, name, value) else value
        for name, value in call_args.items()
    }
    if "prompt" in parameters:
        several = takes_several(parameters)
        assert several or len(set(texts)) == 1, "the call takes a single prompt"
        arguments["prompt"] = list(texts) if several else texts[0]
    if classes.asked(call_args):
        arguments["class_labels"] = [classes.number(call_args, text) for text in texts]
    if "batch_size" in parameters:  # an unconditional pipeline
        arguments["batch_size"] = n
    if "output_type" in parameters:
        arguments["output_type"] = "pil"
    arguments["generator"] = [torch.Generator("cpu").manual_seed(s) for s in seeds]
    return arguments


def takes_several(parameters: Parameters) -> bool:
    """Whether a call takes a prompt for each candidate."""
    return _per_candidate(parameters, "prompt", "")


def _per_candidate(parameters: Parameters, name: str, value: Any) -> bool:
    """Whether a call argument goes into a list with one entry a candidate.

    Class labels do, a picture to start from (so that each draws its own noise of it), and
    prompts where the call takes a list of them: a negative prompt, but neither a system
    prompt, which it puts before each of them itself, nor the parts of one.
    """
    if name == "class_labels" or (name == "image" and "strength" in parameters):
        return True
    parameter = parameters.get(name)
    if "prompt" not in name or parameter is None:
        return False
    kind = str(parameter.annotation).lower()
    takes_list = parameter.annotation is parameter.empty or "list[" in kind
    takes_text = "str" in re.sub(r"list\[[^]]*\]", "", kind)
    return takes_list and (isinstance(value, str) or (takes_text and isinstance(value, list)))


def _only(name: str, value: Any) -> Any:
    """A value that is the same for all candidates; it may be given as a list of one."""
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise UserError(
            f"'{name}' in pipeline_call_args holds {len(value)} values for one prompt: give one."
        )
    return value[0]
