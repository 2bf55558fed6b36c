"""Judges that are asked after the fact: from names, JSON files and options to verifiers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from experiment.complaints import sentence
from experiment.config import VerifierArgs, read_json
from experiment.late_judges import judge_key
from experiment.listeners import judges_of_sets
from utils import UserError
from verifiers.base import Chosen, metric_name

# How a judge is asked, and at what price: its word does not depend on it.
HOW = frozenset({
    "batch_size", "device", "max_concurrency", "requests_per_minute", "max_retries", "timeout",
    "input_price", "output_price",
})  # fmt: skip
LONGEST = 40  # characters of an option in a judge's name


@dataclass(frozen=True)
class Judge:
    """A verifier that judges what others have chosen, its options checked."""

    args: VerifierArgs
    verifier: Chosen

    @property
    def metric(self) -> str:
        return metric_name(self.args.metric)

    @cached_property
    def asked(self) -> dict[str, Any]:
        """What its word depends on."""
        return {
            "name": self.args.name,
            "options": {k: v for k, v in sorted(self.args.options.items()) if k not in HOW},
            "rubric": self.verifier.rubric_hash,
        }

    @cached_property
    def key(self) -> str:
        return judge_key(self.asked)

    @property
    def name(self) -> str:
        """As tables name it where its metric does not tell: with its model and other options."""
        options = dict(self.asked["options"])
        model = options.pop("model_name", None)
        parts = [Path(str(model)).name] if model else []
        parts += [f"{key}={_short(value)}" for key, value in options.items()]
        return f"{self.args.name} ({', '.join(parts)})" if parts else self.args.name


def read_judges(asked: Sequence[str], options: Mapping[str, Any]) -> list[Judge]:
    """The judges named on the command line; refuses what cannot judge, loads nothing.

    asked: each a verifier's name, a JSON object, or a JSON file with an object or a list of them.
    options: of the only judge there is.
    """
    specs = [spec for text in asked for spec in _specs(text)]
    if options and len(specs) != 1:
        raise UserError(
            f"--set is for a single judge, and there are {len(specs)}: write their options into a"
            " JSON file."
        )
    judges = [_judge({**spec, **options}) for spec in specs]
    names = [judge.name for judge in judges]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"The judge '{name}' is named twice: name it once.")
    return judges


def _specs(text: str) -> list[dict[str, Any]]:
    if text.lstrip().startswith(("{", "[")):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"--judge is given JSON that cannot be read: {error}.") from error
    elif text.endswith(".json"):
        content = read_json(text)
    else:
        content = {"name": text}
    found = content if isinstance(content, list) else [content]
    if not found or not all(isinstance(spec, dict) and "name" in spec for spec in found):
        raise UserError(
            f'--judge wants a verifier\'s name, or JSON like {{"name": "vqa"}}, not \'{text}\'.'
        )
    return found


def _judge(spec: Mapping[str, Any]) -> Judge:
    try:
        args = VerifierArgs.model_validate(spec)
    except ValidationError as error:
        raise UserError(sentence(error, "--judge")) from error
    made = args.make()
    if made.preview_noise is not None:
        raise UserError(f"'{args.name}' wants previews, of which a finished run has none.")
    if judges_of_sets(args):
        raise UserError(
            f"'{args.name}' judges images as a set: give --table --features instead, with"
            " --statistics for the Fréchet distance."
        )
    if made.pooled:
        raise UserError(
            f"'{args.name}' compares the candidates of a pool, and winners make none: give it"
            ' "combine": "weighted".'
        )
    made.check()
    return Judge(args, made)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
