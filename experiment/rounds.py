"""One prompt's rounds as they come in: which pictures are kept, who won, what is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from experiment.evaluate import Evaluated
from experiment.prompts import Prompt
from experiment.store import RunStore
from search.core import Rollout
from utils import json_number
from verifiers.base import Chosen, Item, Score, metric_name


@dataclass(frozen=True)
class Kept:
    """A finished candidate that counted in a round; `path` is its picture's, if it is on disk."""

    id: int
    seed: int
    round: int
    score: Score
    path: str | None
    judged: Mapping[str, Score] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[float, int]:
        """Sorts best first: nan never wins, and of equal scores the earlier candidate does."""
        value = self.score.value
        return (math.inf if math.isnan(value) else -value, self.id)


@dataclass(frozen=True)
class RoundResult:
    """A closed round, as it is shown to the user."""

    round: int
    num_noises: int
    winner: Kept | None
    rejected: bool


class RoundBook:
    """Collects one prompt's scored candidates and writes each round when it is complete.

    A picture is written as soon as it is scored, unless its round may yet be rejected: then all
    of the round's pictures wait. Rows and the round's record follow the pictures they name.
    """

    def __init__(
        self, store: RunStore, prompt: Prompt, verifier: Chosen, judges: Sequence[Chosen]
    ) -> None:
        self._store = store
        self._prompt = prompt
        self._verifier = verifier
        self._judges = judges
        self._number = 0
        self._entries: list[Evaluated] = []
        self._paths: dict[int, str] = {}
        self._last: Rollout | None = None
        self._last_ids: set[int] = set()
        self._leader: Evaluated | None = None
        self._known: dict[int, Kept] = {}
        self.best: Kept | None = None
        self.statuses: Counter[str] = Counter()
        self.results: list[RoundResult] = []

    def add(self, rollout: Rollout, batch: Sequence[Evaluated]) -> None:
        """Take a scored batch of one of the round's rollouts."""
        assert rollout.round is not None
        if rollout.round != self._number:
            self.close()
            self._number = rollout.round
        if rollout is not self._last:
            self._last, self._last_ids = rollout, set()
        self._last_ids |= {entry.id for entry in batch}
        for entry in batch:
            self._lead(entry)
            self._entries.append(entry if rollout.rejectable else self._saved(entry))
            self.statuses[entry.score.status] += 1

    @property
    def leading(self) -> float:
        """The prompt's best score so far, the open round's included; nan for none."""
        scores = [self.best.score.value] if self.best else []
        scores += [self._leader.value] if self._leader else []
        return max(scores, default=math.nan)

    def close(self) -> RoundResult | None:
        """Write what the round came to; None where nothing came in."""
        if not self._entries or self._last is None:
            return None
        fresh = [self._kept(entry) for entry in self._entries if entry.finished]
        self._remember(fresh)
        rivals = [self._known[i] for i in self._last.rivals if i in self._known]
        pool = {kept.id: kept for kept in (*fresh, *rivals)}
        leader = min(pool.values(), key=lambda kept: kept.rank, default=None)
        winner = leader if leader is not None and not math.isnan(leader.score.value) else None
        rejected = self._last.rejectable and (winner is None or winner.id not in self._last_ids)
        self._save_held(rejected)
        if winner is not None:
            winner = self._judged(winner)
        self._store.append_rows([self._row(entry) for entry in self._entries])
        if winner is not None and not rejected:
            self._write_round(winner, len(pool))
        result = RoundResult(self._number, len(pool), winner, rejected)
        self.results.append(result)
        self._entries, self._last, self._leader = [], None, None
        return result

    def _lead(self, entry: Evaluated) -> None:
        """Keep the picture of the round's best so far at hand, for the judges."""
        leads = self._leader is None or entry.value > self._leader.value
        if entry.finished and not math.isnan(entry.value) and leads:
            self._leader = entry

    def _saved(self, entry: Evaluated) -> Evaluated:
        """The candidate with its picture on disk and no longer in memory."""
        if entry.media is None:
            return entry
        self._paths[entry.id] = self._store.write_image(
            self._prompt, self._number, entry.seed, entry.media
        )
        return replace(entry, media=None)

    def _kept(self, entry: Evaluated) -> Kept:
        return Kept(entry.id, entry.seed, self._number, entry.score, self._paths.get(entry.id))

    def _remember(self, fresh: Sequence[Kept]) -> None:
        for kept in fresh:
            self._known[kept.id] = kept
            better = self.best is None or kept.rank < self.best.rank
            if better and not math.isnan(kept.score.value):
                self.best = kept

    def _save_held(self, rejected: bool) -> None:
        """Write the pictures that waited; of a rejected round only the prompt's best so far."""
        for entry in self._entries:
            wanted = not rejected or (self.best is not None and entry.id == self.best.id)
            if entry.media is not None and entry.id not in self._paths and wanted:
                self._saved(entry)
        for kept in self._known.values():
            if kept.path is None and kept.id in self._paths:
                self._known[kept.id] = replace(kept, path=self._paths[kept.id])
        if self.best is not None:
            self.best = self._known[self.best.id]

    def _judged(self, winner: Kept) -> Kept:
        """The winner with the judges' scores; an earlier round's winner has them already."""
        winner = self._known[winner.id]
        if self._leader is None or self._leader.id != winner.id or not self._judges:
            return winner
        item = Item(self._leader.media, self._prompt.text)
        judged = {judge.name: judge.score([item])[0] for judge in self._judges}
        self._known[winner.id] = replace(winner, judged=judged)
        if self.best is not None:
            self.best = self._known[self.best.id]
        return self._known[winner.id]

    def _row(self, entry: Evaluated) -> dict[str, Any]:
        kept = self._known.get(entry.id)
        return {
            "id": entry.id,
            "prompt": self._prompt.text,
            "prompt_index": self._prompt.index,
            "round": self._number,
            "step": entry.step,
            "steps": entry.steps,
            "seed": entry.seed,
            "recipe": entry.recipe,
            "parents": list(entry.parents),
            "status": entry.score.status,
            "score": json_number(entry.value),
            "scores": {self._verifier.name: dict(entry.score.aspects)},
            "judges": aspects(kept.judged) if kept else {},
            "explanation": entry.score.explanation,
            "nfe": entry.nfe,
            "rows": entry.rows,
            "batch_size": entry.batch_size,
            "seconds": round(entry.seconds, 6),
            "path": self._paths.get(entry.id),
        }

    def _write_round(self, winner: Kept, num_noises: int) -> None:
        """tt-scale-flux's record of a round, its fields in its order, and ours after them."""
        path = winner.path
        assert path is not None
        if winner.round != self._number:  # the nested pool's best is an earlier round's
            path = self._store.copy_image(self._prompt, self._number, winner.seed, path)
        score: Any = winner.score.value
        if self._verifier.explains:
            score = {"explanation": winner.score.explanation, "score": score}
        record = {
            "prompt": self._prompt.text,
            "search_round": self._number,
            "num_noises": num_noises,
            "best_noise_seed": winner.seed,
            "best_score": score,
            "choice_of_metric": metric_name(self._verifier.metric),
            "best_img_path": str(self._store.folder / path),
            "best_id": winner.id,
            "prompt_index": self._prompt.index,
            "category": self._prompt.category,
            "judges": aspects(winner.judged),
        }
        self._store.write_round(self._prompt, self._number, winner.seed, record)


def aspects(judged: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """What each judge gave, aspect by aspect."""
    return {name: dict(score.aspects) for name, score in judged.items()}
