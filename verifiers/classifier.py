"""Class-conditional verifier: how sure an image classifier is of the class that was asked for."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from verifiers.base import Item, Score
from verifiers.features import Seen, VisionVerifier

SHOWN = 60  # characters of a label that is told not to exist


@dataclass
class Classifier(VisionVerifier):
    """class_prob and its logarithm, class_log_prob, which still tells near-certainties apart.

    The class is the item's label or else its prompt: a name as the model has it ("golden
    retriever", any of an ImageNet class's synonyms), an index ("207") or "class 207". Of classes
    that share a name it is the first, unless it is the other's whole name.
    """

    model_name: str = "google/vit-base-patch16-224"

    metrics: ClassVar[tuple[str, ...]] = ("class_log_prob", "class_prob")
    needs: ClassVar[str] = "the weights of an image classifier (model_name)"
    classifies: ClassVar[bool] = True

    _classes: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _count: int = field(default=0, init=False, repr=False)

    def load(self, device: str) -> None:
        super().load(device)
        labels = self._vision.labels
        self._classes, self._count = classes_by_name(labels), len(labels)

    def score(self, items: Sequence[Item]) -> list[Score]:
        asked = [_plain(item.prompt if item.label is None else str(item.label)) for item in items]
        found = {name: self._class(name) for name in asked}
        known = [item for item, name in zip(items, asked, strict=True) if found[name] is not None]
        unknown = {name: self._unknown(name) for name, index in found.items() if index is None}
        views = iter(self._vision.see([item.media for item in known]))
        return [unknown.get(name) or _score(next(views), found[name]) for name in asked]

    def _class(self, name: str) -> int | None:
        if name in self._classes:  # before any index: the classes may be digits, in their own order
            return self._classes[name]
        number = name.removeprefix("class ")
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            return None
        return int(number) if int(number) < self._count else None

    def _unknown(self, name: str) -> Score:
        asked = name if len(name) <= SHOWN else name[: SHOWN - 3] + "..."
        near = difflib.get_close_matches(asked, self._classes, n=1, cutoff=0.0)
        hint = f"the nearest name is '{near[0]}'" if near else "it has no names"
        return Score.missing(
            f"'{asked}' is none of the {self._count} classes of {self.model_name}; {hint}"
        )


def classes_by_name(labels: Sequence[str]) -> dict[str, int]:
    """Every name of every class: whole labels first, then the synonyms between their commas."""
    names: dict[str, int] = {}
    for index, label in enumerate(labels):
        names.setdefault(_plain(label), index)
    for index, label in enumerate(labels):
        for synonym in label.split(","):
            names.setdefault(_plain(synonym), index)
    return names


def _plain(name: str) -> str:
    """A name without what people type differently: case, underscores, spaces."""
    return " ".join(name.casefold().replace("_", " ").split())


def _score(seen: Seen | Score, index: int | None) -> Score:
    if isinstance(seen, Score):
        return seen
    assert seen.log_probs is not None and index is not None
    log_prob = float(seen.log_probs[index])
    return Score.of(class_log_prob=log_prob, class_prob=math.exp(log_prob))
