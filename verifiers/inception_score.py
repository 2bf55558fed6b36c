"""Oracle for class-conditional models: the Inception Score of the set chosen so far.

Salimans et al. 2016: IS = exp(mean KL(p(y|x) || p(y))), high for images of sure and varied classes.
Ma et al. 2025 search by it to show what a verifier could reach at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from verifiers.base import Item, Score
from verifiers.features import Seen, VisionVerifier


class ClassTally:
    """What the Inception Score needs of a set: sums over p(y|x) and its negative entropy.

    With h = mean over x of sum_y p(y|x) log p(y|x) and p(y) = mean over x of p(y|x), it is
    exp(h - sum_y p(y) log p(y)); another image costs O(classes).
    """

    def __init__(self) -> None:
        self.count = 0
        self._probs: Tensor | float = 0.0
        self._negative_entropy = 0.0

    def add(self, probs: Tensor) -> None:  # [k]
        self.count += 1
        self._probs = self._probs + probs
        self._negative_entropy += _negative_entropy(probs)

    def score_with(self, probs: Tensor) -> float:
        """The Inception Score of the set with one image more; of one image alone it is 1."""
        n = self.count + 1
        conditional = (self._negative_entropy + _negative_entropy(probs)) / n
        return math.exp(conditional - _negative_entropy((self._probs + probs) / n))


@dataclass
class InceptionScore(VisionVerifier):
    """inception_score: that of all prompts' winners so far and the candidate, under any classifier.

    Any set of one scores 1, so the first prompt's candidates are equals. The scores of published
    tables are of Inception-v3 and ten splits of 50,000 images.
    """

    model_name: str = "google/vit-base-patch16-224"

    metrics: ClassVar[tuple[str, ...]] = ("inception_score",)
    needs: ClassVar[str] = "the weights of an image classifier (model_name)"
    classifies: ClassVar[bool] = True

    _chosen: ClassTally = field(default_factory=ClassTally, init=False, repr=False)

    def judge(self, item: Item, seen: Seen) -> Score:
        score = self._chosen.score_with(_probs(seen))
        return Score.of(details={"chosen": self._chosen.count}, inception_score=score)

    def chose(self, item: Item) -> None:
        for seen in self.seen_in(item):
            self._chosen.add(_probs(seen))


def _probs(seen: Seen) -> Tensor:
    assert seen.log_probs is not None
    return seen.log_probs.double().softmax(dim=-1)  # sums to 1 in float64 too


def _negative_entropy(probs: Tensor) -> float:
    return float(torch.xlogy(probs, probs).sum())  # 0 log 0 = 0
