"""Verifiers that judge whole sets: each is shown what every prompt came to, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from experiment.config import ExperimentConfig, VerifierArgs
from utils import UserError
from verifiers.base import BaseVerifier, Chosen


def listens(judge: Chosen) -> bool:
    """Whether a verifier wants to know what was chosen."""
    inner = getattr(judge.verifier, "verifier", judge.verifier)  # which is shown keyframes
    members: Mapping[str, Chosen] | None = getattr(inner, "members", None)
    if members is not None:
        return any(map(listens, members.values()))
    return getattr(type(inner), "chose", None) is not BaseVerifier.chose


def listeners(config: ExperimentConfig) -> list[str]:
    """The verifiers and judges of a run that are shown what each prompt came to."""
    return judges_of_sets(config.verifier_args, *config.judges)


def judges_of_sets(*several: VerifierArgs) -> list[str]:
    """Those of these whose word on an image depends on what was chosen before."""
    return [args.name for args in _asked(*several) if listens(args.make())]


def refuse_listeners(config: ExperimentConfig, remedy: str) -> None:
    """Refuse verifiers whose scores depend on what earlier prompts came to.

    remedy: what to do, in words.
    """
    for name in listeners(config):
        raise UserError(
            f"'{name}' judges all of a run's images together, prompt after prompt: {remedy}."
        )


def _asked(*several: VerifierArgs) -> Iterator[VerifierArgs]:
    """The verifiers, and of an ensemble its members in its place."""
    for args in several:
        members = args.options.get("verifiers")
        if not members:
            yield args
        for member in members or ():
            own = {key: value for key, value in member.items() if key != "weight"}
            yield from _asked(VerifierArgs.model_validate(own))
