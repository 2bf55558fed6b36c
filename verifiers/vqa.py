"""VQAScore (Lin et al. 2024): how sure a vision-language model is that the prompt is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from utils import UserError
from verifiers.base import Item, Score
from verifiers.vlm import VlmVerifier

YES = ("Yes", "yes", "YES", " Yes", " yes", " YES")
NO = ("No", "no", "NO", " No", " no", " NO")


@dataclass
class Vqa(VlmVerifier):
    """P(yes) against P(no) as the first token of the answer: one forward pass, no text written.

    question: what is asked; {prompt} in it is replaced.
    """

    question: str = 'Does this figure show "{prompt}"? Please answer yes or no.'

    metrics: ClassVar[tuple[str, ...]] = ("vqa_score",)
    needs: ClassVar[str] = "the weights of a vision-language model (model_name)"

    _yes: list[int] = field(default_factory=list, init=False, repr=False)
    _no: list[int] = field(default_factory=list, init=False, repr=False)

    def check(self) -> None:
        super().check()
        if "{prompt}" not in self.question:
            raise UserError("verifier_args.question must contain {prompt}.")

    def load(self, device: str) -> None:
        super().load(device)
        tokenizer = self._vlm.processor.tokenizer
        self._yes, self._no = single_tokens(tokenizer, YES), single_tokens(tokenizer, NO)
        if not self._yes or not self._no:
            raise UserError(
                f"The model '{self.model_name}' has no single token for yes and for no: choose"
                " another with verifier_args.model_name."
            )

    def _inputs(self, items: Sequence[Item]) -> Any:
        return self._vlm.inputs(
            [(item.media, self.question.replace("{prompt}", item.prompt)) for item in items]
        )

    def _answers(self, inputs: Any) -> list[Score]:
        import torch

        first = self._vlm.model.generate(
            **inputs,
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        ).logits[0]
        logits = first.float()  # [n, vocabulary]
        yes = logits[:, self._yes].logsumexp(dim=-1)
        no = logits[:, self._no].logsumexp(dim=-1)
        said = torch.logaddexp(yes, no) - logits.logsumexp(dim=-1)
        # `answered`, the share of yes and no among all tokens, is low where they are not the
        # answer that the model had in mind.
        return [
            Score.of(vqa_score=p, details={"model": self.model_name, "answered": share})
            for p, share in zip(torch.sigmoid(yes - no).tolist(), said.exp().tolist(), strict=True)
        ]


def single_tokens(tokenizer: Any, variants: Sequence[str]) -> list[int]:
    """The ids of those variants that are one token."""
    split = [tokenizer.encode(text, add_special_tokens=False) for text in variants]
    return sorted({ids[0] for ids in split if len(ids) == 1})
