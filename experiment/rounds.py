"""One prompt's rounds as they come in: which pictures are kept, who won, what is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from experiment.evaluate import Evaluated
from experiment.journal import Journal
from experiment.prompts import Prompt
from experiment.store import RunStore
from search.core import Rollout
from utils import json_number
from verifiers.base import Chosen, Item, Memory, Score, metric_name


@dataclass(frozen=True)
class Kept:
    """A finished candidate that counted in a round; `path` is its picture's, if it is on disk."""

    id: int
    seed: int
    round: int
    score: Score
    path: str | None
    judged: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundResult:
    """A closed round, as it is shown to the user; `value` is the winner's as the round closed."""

    round: int
    num_noises: int
    winner: Kept | None
    value: float
    rejected: bool


class RoundBook:
    """Collects one prompt's scored candidates and writes each round when it is complete.

    A picture is written as soon as it is scored, unless its round may yet be rejected: then all
    of the round's pictures wait. Rows and the round's record follow the pictures they name.
    Candidates are compared by `values`, which another hand keeps up to date.
    """

    def __init__(
        self,
        store: RunStore,
        prompt: Prompt,
        verifier: Chosen,
        judges: Mapping[str, Chosen],
        values: Mapping[int, float],
        journal: Journal,
        label: str | None = None,
    ) -> None:
        self._store = store
        self.prompt = prompt
        self._verifier = verifier
        self._judges = judges
        self._values = values
        self._journal = journal
        self._label = label
        self._number = 0
        self._entries: list[Evaluated] = []
        self._paths: dict[int, str] = {}
        self._last: Rollout | None = None
        self._last_ids: set[int] = set()
        self._known: dict[int, Kept] = {}
        self._videos: dict[int, Any] = {}  # the leaders' frames, which MP4 would not give back
        self.statuses: Counter[str] = Counter()
        self.results: list[RoundResult] = []
        self.judged: Callable[[str, Score], None] = lambda judge, score: None  # told of each answer
        self.closed: Callable[[RoundResult], None] = lambda result: None  # told of each round

    def add(self, rollout: Rollout, batch: Sequence[Evaluated]) -> None:
        """Take a batch of one of the round's rollouts."""
        assert rollout.round is not None
        if rollout.round != self._number:
            self.close()
            self._number = rollout.round
        if rollout is not self._last:
            self._last, self._last_ids = rollout, set()
        self._last_ids |= {entry.id for entry in batch}
        videos = {entry.id: entry.media for entry in batch if isinstance(entry.media, list)}
        for entry in batch:
            self._entries.append(entry if rollout.rejectable else self._saved(entry))
            if rollout.score:
                self.statuses[entry.score.status] += 1
            if entry.finished:
                path = self._paths.get(entry.id)
                self._known[entry.id] = Kept(entry.id, entry.seed, self._number, entry.score, path)
        self._hold(self._videos | videos)

    @property
    def best(self) -> Kept | None:
        """The prompt's best finished candidate so far."""
        return self._leader(self._known)

    def value(self, kept: Kept | None) -> float:
        """What a candidate is worth today; nan for none."""
        return math.nan if kept is None else self._values[kept.id]

    def media(self, kept: Kept) -> Any:
        """A candidate's image or frames, for other judges to see."""
        assert kept.path is not None
        frames = self._videos.get(kept.id)
        return frames if frames is not None else self._store.read_media(kept.path)

    def close(self) -> RoundResult | None:
        """Write what the round came to; None where nothing came in."""
        if not self._entries or self._last is None:
            return None
        fresh = {entry.id for entry in self._entries if entry.finished}
        pool = fresh | (set(self._last.rivals) & set(self._known))
        winner = self._leader(pool)
        rejected = self._last.rejectable and (winner is None or winner.id not in self._last_ids)
        self._save_held(rejected)
        if winner is not None:
            winner = self._judged(self._known[winner.id])
        self._store.append_rows([self._row(entry) for entry in self._entries])
        if winner is not None and not rejected:
            self._write_round(winner, len(pool))
        result = RoundResult(self._number, len(pool), winner, self.value(winner), rejected)
        self.results.append(result)
        self._entries, self._last = [], None
        self.closed(result)
        return result

    def _leader(self, ids: Iterable[int]) -> Kept | None:
        """The best by value: nan never wins, and of equal values the earlier candidate does."""
        scored = [i for i in ids if not math.isnan(self._values[i])]
        return self._known[min(scored, key=lambda i: (-self._values[i], i))] if scored else None

    def _hold(self, videos: Mapping[int, Any]) -> None:
        """Let go of all videos but the round's best so far and the prompt's."""
        fresh = [entry.id for entry in self._entries if entry.finished]
        leaders = {kept.id for kept in (self.best, self._leader(fresh)) if kept is not None}
        self._videos = {i: frames for i, frames in videos.items() if i in leaders}

    def _saved(self, entry: Evaluated) -> Evaluated:
        """The candidate with its picture on disk and no longer in memory."""
        if entry.path is not None:
            self._paths[entry.id] = entry.path
        elif entry.media is not None:
            self._paths[entry.id] = self._store.write_media(
                self.prompt, self._number, entry.seed, entry.media
            )
        return replace(entry, media=None)

    def _save_held(self, rejected: bool) -> None:
        """Write the pictures that waited; of a rejected round only the prompt's best so far."""
        best = self.best
        for entry in self._entries:
            leads = best is not None and entry.id == best.id
            # In a pool the order still moves: one that was passed over may yet come out best.
            wanted = not rejected or leads or self._verifier.pooled
            if entry.media is not None and wanted:
                self._saved(entry)
                kept = self._known[entry.id]
                self._known[entry.id] = replace(kept, path=self._paths[entry.id])

    def _judged(self, winner: Kept) -> Kept:
        """The winner with the judges' scores, which it may have from an earlier round."""
        if winner.judged or winner.path is None or not self._judges:
            return winner
        item = Item(self.media(winner), self.prompt.text, label=self._label)
        judged = {name: self._asked(winner.id, name, item) for name in self._judges}
        self._known[winner.id] = replace(winner, judged=judged)
        return self._known[winner.id]

    def _asked(self, id: int, judge: str, item: Item) -> Score:
        """A judge's word on a winner, which it gives once."""

        def ask(memory: Memory) -> Score:
            score = self._judges[judge].score([replace(item, memory=memory)])[0]
            self.judged(judge, score)
            return score

        return self._journal.word(id, judge, ask)

    def _row(self, entry: Evaluated) -> dict[str, Any]:
        kept = self._known.get(entry.id)
        return {
            "id": entry.id,
            "prompt": self.prompt.text,
            "prompt_index": self.prompt.index,
            "category": self.prompt.category,
            "round": self._number,
            "step": entry.step,
            "steps": entry.steps,
            "seed": entry.seed,
            "recipe": entry.recipe,
            "parents": list(entry.parents),
            "status": entry.score.status,
            "score": json_number(self._values[entry.id]),
            "scores": recorded({self._verifier.name: entry.score}),
            "judges": recorded(kept.judged) if kept else {},
            "explanation": entry.score.explanation,
            "details": recorded_details(entry.score),
            "guidance": entry.guidance,
            "draft": entry.draft,
            "profile": entry.profile,
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
            path = self._store.copy_media(self.prompt, self._number, winner.seed, path)
        score: Any = self.value(winner)
        if self._verifier.explains:
            score = {"explanation": winner.score.explanation, "score": score}
        record = {
            "prompt": self.prompt.text,
            "search_round": self._number,
            "num_noises": num_noises,
            "best_noise_seed": winner.seed,
            "best_score": score,
            "choice_of_metric": metric_name(self._verifier.metric),
            "best_img_path": str(self._store.folder / path),
            "best_id": winner.id,
            "prompt_index": self.prompt.index,
            "category": self.prompt.category,
            "judges": recorded(winner.judged),
        }
        self._store.write_round(self.prompt, self._number, winner.seed, record)


def recorded(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """What each verifier gave, aspect by aspect; an ensemble's members stand beside it."""
    flat = {name: dict(score.aspects) for name, score in scores.items()}
    for name, score in scores.items():
        for member, own in score.members.items():
            flat[f"{name}.{member}" if member in flat else member] = dict(own.aspects)
    return flat


def recorded_details(score: Score) -> dict[str, Any]:
    """What a verifier noted beside its score, and why an ensemble's member gave none."""
    details = dict(score.details)
    for member, own in score.members.items():
        noted = dict(own.details)
        if own.status != "ok":
            noted |= {"status": own.status, "explanation": own.explanation}
        if noted:
            details[member] = noted
    return details
