"""A run folder for the eyes: ours or tt-scale-flux's, finished, interrupted or damaged.

Whatever cannot be read is left out, and counted by name: a report on most of a run is worth more
than none. Images are not opened here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiment.late_judges import JUDGED
from experiment.records import (
    CANDIDATES,
    STATE,
    SUMMARY,
    PromptKey,
    ResultFile,
    candidate_files,
    parse_name,
)
from experiment.report_ended import MANIFEST, WINNERS, Ended, Endings, read_endings
from experiment.report_files import Files
from experiment.report_numbers import as_named, as_number, as_whole
from experiment.report_run import UNRECORDED, Candidate, Round, Run, Searched
from utils import UserError, prompt_stem

CONFIG = "config.json"
KNOWN = {CONFIG, MANIFEST, SUMMARY, CANDIDATES, WINNERS, JUDGED, STATE, "replay", "report.html",
         "curves.png", "table.csv", "table.md", "table.json",
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
        self.files = Files(folder)
        self._prompts: dict[PromptKey, _Gathered] = {}
        self._by_index: dict[int, _Gathered] = {}

    def run(self) -> Run:
        endings = read_endings(self.files)
        occurrences = _occurrences(endings.prompts)
        self._read_rows(occurrences)
        self._read_results()
        self._read_endings(endings, occurrences)
        ordered = sorted(
            self._prompts.values(), key=lambda p: (p.index is None, p.index or 0, p.key)
        )
        searched: list[Searched] = []
        times: Counter[str] = Counter()
        for prompt in ordered:
            # The counter behind a hash tells equal prompts apart, where files are all there is.
            searched.append(self._searched(prompt, times[prompt.text], endings))
            times[prompt.text] += 1
        left_out = self.files.left_out
        if not searched:
            reasons = "".join(f"; {each.name}: {each.why}" for each in left_out[:3])
            raise UserError(f"There are no results in {self.folder}{reasons}.")
        config = (self.files.object(CONFIG) if CONFIG in self.files.names else None) or {}
        return Run(
            folder=self.folder,
            config=config,
            searched=tuple(searched),
            names=self.files.names,
            left_out=tuple(left_out),
            unfinished=endings.unfinished,
            asked=_asked(config),
        )

    # Rows.

    def _read_rows(self, occurrences: Mapping[int, int]) -> None:
        """occurrences: by a prompt's number how many equal ones stand before it, if it is known."""
        times: Counter[str] = Counter()
        for name, number, row in self._rows():
            try:
                candidate = _candidate(row)
                index, text = as_whole(row["prompt_index"]), str(row["prompt"])
            except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
                self.files.leave_out(f"{name}, line {number}", "not a candidate's row")
                continue
            if index not in self._by_index:
                occurrence = occurrences.get(index, times[text])
                times[text] += 1
                self._by_index[index] = self._of(_key(candidate, text, occurrence))
            prompt = self._by_index[index]
            prompt.index, prompt.text = index, text
            prompt.category = prompt.category or str(row.get("category") or "")
            prompt.rows.append(candidate)

    def _rows(self) -> Iterator[tuple[str, int, Any]]:
        for path in candidate_files(self.folder):
            name = path.relative_to(self.folder).as_posix()
            yield from ((name, number, row) for number, row in self.files.lines(name))

    def _of(self, key: PromptKey) -> _Gathered:
        return self._prompts.setdefault(key, _Gathered(key))

    # The files of rounds.

    def _read_results(self) -> None:
        for name in sorted(self.files.names):
            file = parse_name(Path(name))
            if file is not None and file.path.suffix in (".png", ".mp4"):
                self._of(file.key).images.append(file)
            elif file is not None and file.path.suffix == ".json":
                self._read_round(file)
            elif name not in KNOWN and not name.startswith(MADE):
                self.files.leave_out(name, "no file of a run")

    def _read_round(self, file: ResultFile) -> None:
        fields = self.files.object(file.path.name)
        if fields is None:
            return
        best = fields.get("best_score")
        graded = best if isinstance(best, dict) else {"score": best}
        video = file.path.with_suffix(".mp4").name
        is_video = video in self.files.names or str(fields.get("best_img_path")).endswith(".mp4")
        number = fields.get("best_id")
        prompt = self._of(file.key)
        prompt.text = prompt.text or str(fields.get("prompt") or file.key.slug.replace("_", " "))
        prompt.category = prompt.category or str(fields.get("category") or "")
        noises = as_number(fields.get("num_noises"))
        prompt.rounds.append(
            Round(
                number=file.search_round,
                seed=file.seed,
                score=as_number(graded.get("score")),
                num_noises=0 if math.isnan(noises) else int(noises),
                explanation=str(graded.get("explanation") or ""),
                id=number if isinstance(number, int) else None,
                path=video if is_video else file.path.with_suffix(".png").name,
                metric=_metric(fields.get("choice_of_metric")),
                judged=as_named(fields.get("judges")),
            )
        )

    # What the run itself says.

    def _read_endings(self, endings: Endings, occurrences: Mapping[int, int]) -> None:
        """Names and categories; and prompts that failed before they had rows."""
        for index, ended in endings.prompts.items():
            prompt = self._by_index.get(index)
            if prompt is None and not ended.failed:
                continue
            if prompt is None:
                prompt = self._of(_file_key(ended.text, occurrences[index]))
                prompt.index, prompt.text = index, ended.text
                self._by_index[index] = prompt
            prompt.category = prompt.category or ended.category

    # All of it together.

    def _searched(self, prompt: _Gathered, occurrence: int, endings: Endings) -> Searched:
        rounds = sorted(prompt.rounds, key=lambda each: each.number)
        known = None if prompt.index is None else endings.prompts.get(prompt.index)
        ended = known or Ended(prompt.text)
        by_id = {each.id: each.judged for each in rounds if each.id is not None}
        candidates = []
        for each in prompt.rows or _from_files(prompt.images, rounds):
            by_path = endings.judged.get(each.path or "", {})
            heard = {**each.judged, **by_id.get(each.id, {}), **by_path}
            if each.id == ended.best:
                heard |= ended.judged
            candidates.append(replace(each, judged=heard) if heard != each.judged else each)
            if each.path is not None and each.path not in self.files.names:
                self.files.leave_out(each.path, "the image is missing")
        return Searched(
            text=prompt.text or prompt.key.slug.replace("_", " "),
            occurrence=occurrence,
            index=prompt.index,
            stem=f"prompt@{prompt.key.slug}_hash@{prompt.key.hash}",
            category=prompt.category,
            candidates=tuple(candidates),
            rounds=tuple(rounds),
            best=_best(candidates, ended.best),
            failed=ended.failed,
            unfinished=known is None and endings.unfinished,
        )


def _occurrences(prompts: Mapping[int, Ended]) -> dict[int, int]:
    """By number, how many equal prompts stand before each."""
    times: Counter[str] = Counter()
    found = {}
    for index in sorted(prompts):
        text = prompts[index].text
        found[index] = times[text]
        times[text] += 1
    return found


def _asked(config: Mapping[str, Any]) -> int | None:
    """How many prompts the run was to search for, where its config says so."""
    if config.get("prompt") is not None:
        return 1
    wanted = config.get("num_prompts")
    return wanted if isinstance(wanted, int) and not isinstance(wanted, bool) else None


def _candidate(row: Any) -> Candidate:
    path = row.get("path")
    # Only a plain name is an image of this folder: a record may have been made anywhere.
    plain = isinstance(path, str) and path == Path(path).name and parse_name(Path(path)) is not None
    return Candidate(
        id=as_whole(row["id"]),
        round=as_whole(row["round"]),
        step=as_whole(row["step"]),
        steps=as_whole(row["steps"]),
        seed=as_whole(row["seed"]),
        status=str(row["status"]),
        score=as_number(row.get("score")),
        named=as_named(row.get("scores")),
        judged=as_named(row.get("judges")),
        explanation=str(row.get("explanation") or ""),
        guidance=as_number(row.get("guidance", 1.0)),
        draft=row.get("draft") is True,
        nfe=as_number(row.get("nfe", 0)),
        seconds=as_number(row.get("seconds", 0)),
        parents=tuple(as_whole(parent) for parent in row.get("parents") or ()),
        recipe=row["recipe"] if isinstance(row.get("recipe"), dict) else {},
        path=path if plain else None,
    )


def _key(candidate: Candidate, text: str, occurrence: int) -> PromptKey:
    """What the prompt's files are named by."""
    file = parse_name(Path(candidate.path)) if candidate.path else None
    return file.key if file else _file_key(text, occurrence)


def _file_key(text: str, occurrence: int) -> PromptKey:
    """As `listed` names it, but for digests that meet."""
    file = parse_name(Path(f"{prompt_stem(text, occurrence)}_i@0_s@0.png"))
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


def _metric(choice: object) -> str:
    return "+".join(map(str, choice)) if isinstance(choice, dict) else str(choice or "")
