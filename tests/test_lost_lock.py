"""A process whose lock was taken over, as it may be after a long sleep, writes nothing more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiment.lines import LineFile
from experiment.lock import Lost, locked, refuse_lost
from experiment.stops import STOPPED, Stopped
from experiment.store import RunStore
from tests.interrupted import Counted, Counting, content
from tests.still_worlds import StillWorld
from verifiers.base import Item, Score

OTHER = json.dumps({"pid": 7, "host": "elsewhere"})


def taken_over(folder: Path) -> None:
    (folder / ".lock").write_text(OTHER)


def replaced(folder: Path) -> None:
    """Somebody has removed the file, and another process begun with one of its own."""
    (folder / ".lock").unlink()
    (folder / ".lock").write_text(OTHER)


def removed(folder: Path) -> None:
    (folder / ".lock").unlink()


@pytest.mark.parametrize("lose", [taken_over, replaced, removed])
def test_a_lock_that_was_lost_is_noticed_and_left_alone(
    lose: Callable[[Path], None], tmp_path: Path
) -> None:
    with locked(tmp_path):
        refuse_lost()
        lose(tmp_path)
        with pytest.raises(Lost, match=f"has taken over {tmp_path}"):
            refuse_lost()
        before = sorted(tmp_path.iterdir())
    assert sorted(tmp_path.iterdir()) == before
    refuse_lost()  # nothing is held, and nothing lost


def test_nothing_is_added_to_files_that_are_anothers_by_now(tmp_path: Path) -> None:
    world = StillWorld.made(tmp_path)
    folder = world.begun("run")
    store = RunStore(folder, world.config.export)
    store.state.mkdir()
    prompt = world.planned.prompts[0]
    lines = LineFile(store.state / "prompt0.jsonl", "")
    lines.append({"n": 1})
    with locked(folder):
        taken_over(folder)
        before = content(folder)
        for write in (
            lambda: lines.append({"n": 2}),
            lambda: lines.rewrite([]),
            lambda: store.append_rows([{"prompt_index": 0}]),
            lambda: store.keep_rows({}),
            lambda: store.write_round(prompt, 1, 2, {}),
            lambda: store.write_summary({}),
            lambda: store.write_tensors("prompt0_0.safetensors", {}),
        ):
            with pytest.raises(Lost, match="Process 7 on elsewhere"):
                write()
        assert content(folder) == before


def test_a_run_that_was_taken_over_stops_without_a_word_in_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the third batch is judged."""
    world = StillWorld.made(tmp_path, verifier_args={"name": "tests.interrupted:Counted"})
    folder = world.begun("run")
    answer, left = Counted._one, []

    def robbed(self: Counted, item: Item) -> Score:
        if Counting.calls == 3:
            taken_over(folder)
            left.append(content(folder))
        return answer(self, item)

    monkeypatch.setattr(Counted, "_one", robbed)
    Counting.begin()
    with locked(folder), pytest.raises(Stopped, match="7 on elsewhere has taken over") as stop:
        world.go_on(folder)
    assert stop.value.code == STOPPED and Counting.calls == 3
    assert "prompt0.jsonl" in str(left[0].keys()) and content(folder) == left[0]
