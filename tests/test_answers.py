"""Graders' answers are kept as they come: what was answered is not asked for, and paid, again."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiment.answers import Answers
from experiment.lines import LineFile
from tests.fake_api import Call, FakeApi, Reply, grading, picture
from tests.interrupted import Killed, content
from tests.still_worlds import StillWorld
from verifiers.base import Chosen, Item, Score
from verifiers.ensemble import Ensemble
from verifiers.gemini import Gemini
from verifiers.http import HttpScorer
from verifiers.keyframes import Keyframes

ASKED = {"seeds": [1, 2], "until": 4}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "k")


class Kept:
    """A journal's answers, and what they are to whoever reads them after an interruption."""

    def __init__(self, lines: Sequence[Mapping[str, Any]] = ()) -> None:
        self.lines: list[Any] = []
        self._answers = Answers(lambda line: self.lines.append(json.loads(json.dumps(line))))
        for line in lines:
            self._answers.take(line)

    def items(self, *media: Any) -> list[Item]:
        return [
            Item(each, f"picture {i}", memory=self._answers.memory(ASKED, i))
            for i, each in enumerate(media)
        ]

    def resumed(self) -> Kept:
        return Kept(self.lines)


def gemini(api: FakeApi, **options: Any) -> Gemini:
    made = Gemini(base_url=api.url, **options)
    made.load("cpu")
    return made


def graded(call: Call) -> Reply:
    return Reply(grading(1 + call.image % 89 / 10))


# One batch ----------------------------------------------------------------------------------------


def test_each_answer_is_kept_while_others_are_awaited() -> None:
    kept, all_but_one = Kept(), threading.Event()

    def script(call: Call) -> Reply:
        assert call.image != 1 or all_but_one.wait(60)
        return graded(call)

    with FakeApi(script) as api:
        thread = threading.Thread(
            target=gemini(api).score, args=(kept.items(*map(picture, range(4))),)
        )
        thread.start()
        ends = time.monotonic() + 60
        while len(kept.lines) < 3 and time.monotonic() < ends:
            time.sleep(0.01)
        assert sorted(line["at"] for line in kept.lines) == [0, 2, 3]
        all_but_one.set()
        thread.join()
        whole = gemini(api).score([Item(picture(i), f"picture {i}") for i in range(4)])
        half = Kept(kept.lines[:3]).items(*map(picture, range(4)))
        api.calls.clear()
        assert gemini(api).score(half) == whole
        assert [call.image for call in api.calls] == [1]


def test_what_was_no_answer_or_is_of_another_picture_is_asked_again() -> None:
    replies = {0: Reply("no grading"), 1: Reply(ending="blocked"), 2: Reply(), 3: Reply()}
    with FakeApi(lambda call: replies.get(call.image, Reply())) as api:
        kept = Kept()
        scores = gemini(api).score(kept.items(*map(picture, range(4))))
        assert [score.status for score in scores] == ["unscored", "blocked", "ok", "ok"]
        api.calls.clear()
        gemini(api).score(kept.resumed().items(picture(0), picture(1), picture(2), picture(9)))
        assert sorted({call.image for call in api.calls}) == [0, 9]


def test_what_was_asked_in_vain_does_not_hide_that_the_key_is_refused() -> None:
    """With an answer of an earlier sitting, a batch is judged as it would have been whole."""
    with FakeApi(graded) as api:
        kept = Kept()
        gemini(api).score(kept.items(picture(0)))
        api.script = lambda call: Reply(status=403, error={"message": "no such key"})
        scores = gemini(api).score(kept.resumed().items(picture(0), picture(1)))
    assert [score.status for score in scores] == ["ok", "unscored"]


def test_members_and_frames_have_memories_of_their_own() -> None:
    video = [picture(i) for i in range(5)]
    with FakeApi(graded) as api:
        member = {"name": "gemini", "base_url": api.url}
        ensemble = Ensemble([{**member, "seed": 1}, {**member, "seed": 2}], combine="weighted")
        ensemble.load("cpu")
        kept = Kept()
        whole = ensemble.score(kept.items(video, picture(7)))
        assert len(kept.lines) == len(api.calls) == 2 * (3 + 1)
        assert len({(line["at"], *line["by"]) for line in kept.lines}) == 8
        for cut in range(9):
            api.calls.clear()
            resumed = Kept(kept.lines[:cut])
            assert ensemble.score(resumed.items(video, picture(7))) == whole
            assert len(api.calls) == len(resumed.lines) == 8 - cut


def test_a_scorer_behind_a_url_keeps_each_request_but_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def answered(self: HttpScorer, items: Sequence[Item]) -> list[Score]:
        asked.append(len(items))
        return [Score.of(score=float(item.media.getpixel((0, 0))[2])) for item in items]

    monkeypatch.setattr(HttpScorer, "_batch", answered)
    scorer, kept = HttpScorer("http://here", batch_size=2), Kept()
    whole = scorer.score(kept.items(*map(picture, range(5))))
    assert asked == [2, 2, 1] and len(kept.lines) == 4
    assert scorer.score(Kept(kept.lines[:2]).items(*map(picture, range(5)))) == whole
    assert asked[3:] == [2, 1]


def test_a_video_shown_as_keyframes_without_a_memory_is_judged_as_ever() -> None:
    video = [Image.new("RGB", (2, 2), (0, 0, i)) for i in range(3)]
    with FakeApi(graded) as api:
        judge = Chosen(Keyframes(gemini(api)), "gemini", "overall_score")  # type: ignore[arg-type]
        assert judge.score([Item(video, "p")])[0].status == "ok"


# Whole runs ---------------------------------------------------------------------------------------


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """The second answer of each batch is late."""
    count = iter(range(10**9))

    def script(call: Call) -> Reply:
        time.sleep(0.03 * (next(count) % 2))
        return graded(call)

    with FakeApi(script) as server:
        yield server


def world_of(folder: Path, api: FakeApi, at_once: int) -> StillWorld:
    prompts = folder / "own.txt"
    prompts.write_text("".join(f"prompt {i}\n" for i in range(4)))
    return StillWorld.made(
        folder,
        prompts=str(prompts),
        verifier_args={"name": "gemini", "base_url": api.url},
        judges=[],
        engine_args={"prompts_at_once": at_once},
    )


def killed_after(answers: int, patch: pytest.MonkeyPatch) -> list[int]:
    """The process ends when so many answers are on record: no line is added after that.

    Returns their numbers.
    """
    append, turn, kept = LineFile.append, threading.Lock(), list[int]()

    def appending(self: LineFile, line: Mapping[str, Any]) -> None:
        with turn:
            if len(kept) == answers:
                raise Killed
            append(self, line)
            if line.get("kind") == "answer":
                kept.append(len(kept))

    patch.setattr(LineFile, "append", appending)
    return kept


def pictures(api: FakeApi) -> Counter[str]:
    return Counter(json.dumps(call.body, sort_keys=True) for call in api.calls)


@pytest.mark.parametrize("at_once", [1, 4])
def test_only_what_was_awaited_is_asked_again(
    at_once: int, tmp_path: Path, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several prompts at once, killed again and again, while some have half of a batch."""
    world = world_of(tmp_path, api, at_once)
    whole = world.whole.content
    paid = pictures(api)
    assert set(paid.values()) == {1}
    api.calls.clear()
    folder, kept = world.begun("run"), 0
    for answers in (1, 3, 2, 1):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            numbers = killed_after(answers, patch)
            world.go_on(folder)
        kept += len(numbers)
    time.sleep(0.3)  # what was on its way has come by now
    awaited = len(api.calls) - kept
    world.go_on(folder)
    assert content(folder) == whole
    assert pictures(api).keys() == paid.keys()
    assert sum((pictures(api) - paid).values()) == awaited > 0
