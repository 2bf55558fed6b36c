"""A run folder for the eyes: ours or tt-scale-flux's, finished, interrupted or damaged.

Whatever cannot be read is left out, and counted by name: a report on most of a run is worth more
than none. Images are not opened here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiment.late_judges import JUDGED, words
from experiment.records import (
    CANDIDATES,
    STATE,
    SUMMARY,
    PromptKey,
    ResultFile,
    candidate_files,
    parse_name,
)
from experiment.report_run import UNRECORDED, Candidate, LeftOut, Named, Round, Run, Searched
from utils import UserError, prompt_stem

CONFIG, WINNERS = "config.json", "winners.jsonl"
KNOWN = {CONFIG, "manifest.json", SUMMARY, CANDIDATES, WINNERS, JUDGED, STATE,
         "replay", "report.html", "curves.png", "table.csv", "table.md", "table.json",
         "tensorboard", "wandb", "dvclive"}  # fmt: skip
MADE = ("collage_", "round_", "top_", "export_", ".")


def read_run(folder: Path) -> Run:
    """All that can be read of a folder; refuses one in which that is nothing."""
    return _Reading(folder).run()


@dataclass
class _Gathered:
    """What the files say of one prompt. index: its place in the run, as rows tell it."""

    key: PromptKey
    index: int | None = None
    text: str = ""
    category: str = ""
    rows: list[Candidate] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    images: list[ResultFile] = field(default_factory=list)


class _Reading:
    """One folder being read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left_out: list[LeftOut] = []
        self.names = frozenset(path.name for path in folder.iterdir())
        self._prompts: dict[PromptKey, _Gathered] = {}
        self._by_index: dict[int, _Gathered] = {}

    def run(self) -> Run:
        self._read_rows()
        self._read_results()
        chosen, judged = self._summary(), self._winners()
        ordered = sorted(
            self._prompts.values(), key=lambda p: (p.index is None, p.index or 0, p.key)
        )
        searched: list[Searched] = []
        times: dict[str, int] = {}
        for prompt in ordered:
            # The counter behind a hash tells equal prompts apart, where files are all there is.
            occurrence = times.get(prompt.text, 0)
            times[prompt.text] = occurrence + 1
            searched.append(self._searched(prompt, occurrence, chosen, judged))
        if not searched:
            reasons = "".join(f"; {each.name}: {each.why}" for each in self.left_out[:3])
            raise UserError(f"There are no results in {self.folder}{reasons}.")
        config = self._object(CONFIG) if CONFIG in self.names else None
        return Run(
            self.folder, config or {}, tuple(searched), self.names, tuple(self.left_out)
        )  # fmt: skip

    def _leave_out(self, name: str, why: str) -> None:
        self.left_out.append(LeftOut(name, why))

    # Rows.

    def _read_rows(self) -> None:
        times: dict[str, int] = {}
        for name, number, row in self._rows():
            try:
                candidate = _candidate(row)
                index, text = _whole(row["prompt_index"]), str(row["prompt"])
            except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
                self._leave_out(f"{name}, line {number}", "not a candidate's row")
                continue
            if index not in self._by_index:
                occurrence = times.get(text, 0)
                times[text] = occurrence + 1
                self._by_index[index] = self._of(_key(candidate, text, occurrence))
            prompt = self._by_index[index]
            prompt.index, prompt.text = index, text
            prompt.category = prompt.category or str(row.get("category") or "")
            prompt.rows.append(candidate)

    def _rows(self) -> Iterator[tuple[str, int, Any]]:
        for path in candidate_files(self.folder):
            name = path.relative_to(self.folder).as_posix()
            yield from ((name, number, row) for number, row in self._lines(name))

    def _of(self, key: PromptKey) -> _Gathered:
        return self._prompts.setdefault(key, _Gathered(key))

    # The files of rounds.

    def _read_results(self) -> None:
        for name in sorted(self.names):
            file = parse_name(Path(name))
            if file is not None and file.path.suffix in (".png", ".mp4"):
                self._of(file.key).images.append(file)
            elif file is not None and file.path.suffix == ".json":
                self._read_round(file)
            elif name not in KNOWN and not name.startswith(MADE):
                self._leave_out(name, "no file of a run")

    def _read_round(self, file: ResultFile) -> None:
        fields = self._object(file.path.name)
        if fields is None:
            return
        best = fields.get("best_score")
        graded = best if isinstance(best, dict) else {"score": best}
        video = file.path.with_suffix(".mp4").name
        is_video = video in self.names or str(fields.get("best_img_path")).endswith(".mp4")
        number = fields.get("best_id")
        prompt = self._of(file.key)
        prompt.text = prompt.text or str(fields.get("prompt") or file.key.slug.replace("_", " "))
        prompt.category = prompt.category or str(fields.get("category") or "")
        noises = _number(fields.get("num_noises"))
        prompt.rounds.append(
            Round(
                number=file.search_round,
                seed=file.seed,
                score=_number(graded.get("score")),
                num_noises=0 if math.isnan(noises) else int(noises),
                explanation=str(graded.get("explanation") or ""),
                id=number if isinstance(number, int) else None,
                path=video if is_video else file.path.with_suffix(".png").name,
                metric=_metric(fields.get("choice_of_metric")),
                judged=_named(fields.get("judges")),
            )
        )

    # What the run itself chose.

    def _summary(self) -> dict[int, tuple[int, Mapping[Named, float]]]:
        """By prompt the id of its best candidate, and the judges' word on it."""
        content = self._object(SUMMARY) if SUMMARY in self.names else None
        if content is None:
            return {}
        chosen: dict[int, tuple[int, Mapping[Named, float]]] = {}
        try:
            for index, entry in enumerate(content["prompts"]):
                at = _whole(entry.get("prompt_index", index))
                if (prompt := self._by_index.get(at)) is not None:
                    prompt.category = prompt.category or str(entry.get("category") or "")
                if best := entry["best"]:
                    chosen[at] = _whole(best["id"]), _named(best.get("judges"))
        except (KeyError, TypeError, AttributeError, ValueError):
            self._leave_out(SUMMARY, "not a run's summary")
        return chosen

    def _winners(self) -> dict[str, Mapping[Named, float]]:
        """By path what a comparison's judges said of it, and those that were asked later."""
        judged: dict[str, Mapping[Named, float]] = {}
        for number, line in self._lines(WINNERS):
            try:
                for winner in line["winners"]:
                    if winner["path"] is not None:
                        judged[winner["path"]] = _named({"": winner["scores"]})
            except (KeyError, TypeError):
                self._leave_out(f"{WINNERS}, line {number}", "not a prompt's winners")
        for word in words(self.folder, self._leave_out):
            judged[word.path] = {**judged.get(word.path, {}), **_named(word.scores)}
        return judged

    # All of it together.

    def _searched(
        self,
        prompt: _Gathered,
        occurrence: int,
        chosen: Mapping[int, tuple[int, Mapping[Named, float]]],
        judged: Mapping[str, Mapping[Named, float]],
    ) -> Searched:
        rounds = sorted(prompt.rounds, key=lambda each: each.number)
        best_id, said = chosen.get(-1 if prompt.index is None else prompt.index, (None, {}))
        by_id = {each.id: each.judged for each in rounds if each.id is not None}
        candidates = []
        for each in prompt.rows or _from_files(prompt.images, rounds):
            heard = {**each.judged, **by_id.get(each.id, {}), **judged.get(each.path or "", {})}
            if each.id == best_id:
                heard |= said
            candidates.append(replace(each, judged=heard) if heard != each.judged else each)
            if each.path is not None and each.path not in self.names:
                self._leave_out(each.path, "the image is missing")
        return Searched(
            text=prompt.text or prompt.key.slug.replace("_", " "),
            occurrence=occurrence,
            stem=f"prompt@{prompt.key.slug}_hash@{prompt.key.hash}",
            category=prompt.category,
            candidates=tuple(candidates),
            rounds=tuple(rounds),
            best=_best(candidates, best_id),
        )

    # Files.

    def _object(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads((self.folder / name).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            self._leave_out(name, f"it cannot be read ({_short(error)})")
            return None
        if not isinstance(content, dict):
            self._leave_out(name, "it holds no JSON object")
            return None
        return content

    def _lines(self, name: str) -> Iterator[tuple[int, Any]]:
        """The objects of a file with one on each line, with their numbers."""
        if not (self.folder / name).exists():
            return
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            self._leave_out(name, f"it cannot be read ({_short(error)})")
            return
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                self._leave_out(f"{name}, line {number}", "it is damaged or was cut short")


def _candidate(row: Any) -> Candidate:
    path = row.get("path")
    # Only a plain name is an image of this folder: a record may have been made anywhere.
    plain = isinstance(path, str) and path == Path(path).name and parse_name(Path(path)) is not None
    return Candidate(
        id=_whole(row["id"]),
        round=_whole(row["round"]),
        step=_whole(row["step"]),
        steps=_whole(row["steps"]),
        seed=_whole(row["seed"]),
        status=str(row["status"]),
        score=_number(row.get("score")),
        named=_named(row.get("scores")),
        judged=_named(row.get("judges")),
        explanation=str(row.get("explanation") or ""),
        guidance=_number(row.get("guidance", 1.0)),
        draft=row.get("draft") is True,
        nfe=_number(row.get("nfe", 0)),
        seconds=_number(row.get("seconds", 0)),
        parents=tuple(_whole(parent) for parent in row.get("parents") or ()),
        recipe=row["recipe"] if isinstance(row.get("recipe"), dict) else {},
        path=path if plain else None,
    )


def _key(candidate: Candidate, text: str, occurrence: int) -> PromptKey:
    """What the prompt's files are named by."""
    stem = prompt_stem(text, occurrence)
    file = parse_name(Path(candidate.path or f"{stem}_i@0_s@0.png"))
    if file is None:
        file = parse_name(Path(f"{stem}_i@0_s@0.png"))
    assert file is not None
    return file.key


def _from_files(images: Iterable[ResultFile], rounds: Iterable[Round]) -> list[Candidate]:
    """Candidates as file names tell of them: only a round's winner has a score."""
    winners = {each.path: each for each in rounds}
    places = {file.path.name: (file.search_round, file.seed) for file in images}
    places |= {path: (each.number, each.seed) for path, each in winners.items()}
    ordered = sorted(places.items(), key=lambda item: (item[1], item[0]))
    candidates = []
    for number, (path, (search_round, seed)) in enumerate(ordered):
        won = winners.get(path)
        candidates.append(
            Candidate(
                id=number,
                round=search_round,
                step=1,
                steps=1,
                seed=seed,
                status="ok" if won and not math.isnan(won.score) else UNRECORDED,
                score=won.score if won else math.nan,
                judged=won.judged if won else {},
                explanation=won.explanation if won else "",
                path=path,
            )
        )
    return candidates


def _best(candidates: Iterable[Candidate], chosen: int | None) -> Candidate | None:
    """What the run chose, else the first of the highest finished ones.

    One without a picture belongs to a rejected round, in which something on disk scored as high.
    """
    finished = [c for c in candidates if c.finished and c.path and not math.isnan(c.score)]
    for each in finished:
        if each.id == chosen:
            return each
    return min(finished, key=lambda each: (-each.score, each.id), default=None)


def _named(scores: object) -> dict[Named, float]:
    """{"clip": {"clip_score": 0.8}} with one key; what is no number is left out."""
    if not isinstance(scores, dict):
        return {}
    return {
        (str(name), str(aspect)): number
        for name, aspects in scores.items()
        if isinstance(aspects, dict)
        for aspect, value in aspects.items()
        if not math.isnan(number := _number(value))
    }


def _metric(choice: object) -> str:
    return "+".join(map(str, choice)) if isinstance(choice, dict) else str(choice or "")


def _number(value: object) -> float:
    """A finite JSON number as a float; anything else is nan."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # an integer of any length is JSON
        return math.nan


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is no whole number")
    return value


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
