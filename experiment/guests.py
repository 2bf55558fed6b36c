"""Verifiers that share the device with the pipeline: who judges when."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pipelines.denoiser import Denoiser
from pipelines.placement import Residence
from verifiers.base import Chosen, Item, Score


@dataclass(frozen=True)
class Guest(Chosen):
    """A verifier for whom the pipeline leaves the device, and who leaves it when it is done."""

    residence: Residence

    def score(self, items: Sequence[Item]) -> list[Score]:
        self.residence.leave()
        scores = super().score(items)
        self.offload()
        return scores

    def chose(self, item: Item) -> None:
        self.residence.leave()
        super().chose(item)
        self.offload()


@dataclass(frozen=True)
class Neighbor(Chosen):
    """A verifier beside the pipeline, who judges while nothing is being denoised."""

    turn: AbstractContextManager[object]

    def score(self, items: Sequence[Item]) -> list[Score]:
        with self.turn:
            return super().score(items)

    def chose(self, item: Item) -> None:
        with self.turn:
            super().chose(item)


def seated(verifier: Chosen, denoiser: Denoiser) -> Chosen:
    """The verifier, where need be as one that waits its turn or has the device to itself."""
    if verifier.remote:
        return verifier
    residence = denoiser.residence
    if residence is not None and residence.alone:
        return Guest(verifier.verifier, verifier.name, verifier.metric, residence)
    return Neighbor(verifier.verifier, verifier.name, verifier.metric, denoiser.turn)
