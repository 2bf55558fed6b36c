"""Images and prompts on their way through a judge: tokens, batches, scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils import UserError
from verifiers.base import Item, Score
from verifiers.checkpoints import DTYPES
from verifiers.turns import on_device

if TYPE_CHECKING:
    from PIL.Image import Image


def check_model_options(batch_size: int, dtype: str) -> None:
    """Refuse what no model verifier can run with."""
    if batch_size < 1:
        raise UserError(f"verifier_args.batch_size must be at least 1, not {batch_size}.")
    if dtype not in DTYPES:
        raise UserError(f"verifier_args.dtype is fp32, fp16 or bf16, not '{dtype}'.")


def tokenize(tokenizer: Any, prompts: Sequence[str], longest: int, padding: bool | str) -> Any:
    """Token ids and mask; what is no Unicode text (a lone surrogate) is read as '?'."""
    texts = [prompt.encode("utf-8", "replace").decode() for prompt in prompts]
    return tokenizer(
        texts, padding=padding, truncation=True, max_length=longest, return_tensors="pt"
    )


def score_batches(
    items: Sequence[Item],
    *,
    batch_size: int,
    metric: str,
    prepare: Callable[[Image], Tensor],
    judge: Callable[[Tensor, Sequence[str]], Tensor],
) -> list[Score]:
    """Scores of images in batches; what cannot be prepared costs its own score and no other."""
    scores: list[Score] = []
    for begin in range(0, len(items), batch_size):
        batch = items[begin : begin + batch_size]
        prepared = [_prepared(item.media, prepare) for item in batch]
        good = {i: made for i, made in enumerate(prepared) if isinstance(made, Tensor)}
        prompts = [batch[i].prompt for i in good]
        with on_device(), torch.no_grad():
            values = judge(torch.stack(list(good.values())), prompts).tolist() if good else []
        found = dict(zip(good, values, strict=True))
        scores += [
            made if isinstance(made, Score) else Score(found[i], {metric: found[i]})
            for i, made in enumerate(prepared)
        ]
    return scores


def _prepared(image: Any, prepare: Callable[[Image], Tensor]) -> Tensor | Score:
    try:
        return prepare(image)
    except (OSError, ValueError, TypeError, AttributeError, MemoryError) as error:
        return Score.missing(f"The image cannot be read: {error}", "invalid_image")
