"""Judges that have the device to themselves while they judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def guest(verifier: Chosen, residence: Residence | None) -> Chosen:
    """The verifier, as a guest where it cannot share the device."""
    if residence is None or not residence.alone or verifier.away:
        return verifier
    return Guest(verifier.verifier, verifier.name, verifier.metric, residence)
