"""What a run can do and hardly anybody wants: said before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from experiment.calls import verifier_names
from experiment.config import ExperimentConfig
from experiment.prompts import Prompt
from utils import counted
from verifiers import verifier_class


def unread_prompts(config: ExperimentConfig, prompts: Sequence[Prompt]) -> Iterator[str]:
    """Of each verifier that reads only some prompts (`reads` tells which): how many it cannot."""
    for name in dict.fromkeys(verifier_names((config.verifier_args, *config.judges))):
        reads = getattr(verifier_class(name), "reads", None)
        unread = [] if reads is None else [p.text for p in prompts if not reads(p.text)]
        if unread:
            first, of = " ".join(unread[0].split()), "it" if len(unread) == 1 else "them"
            yield (
                f"{name} cannot read {len(unread)} of {counted(len(prompts), 'prompt')}, so images"
                f" of {of} get no score: '{first}'{', ...' if len(unread) > 1 else ''}"
            )
