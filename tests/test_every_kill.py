"""Every method, ended at every write in turn, and gone on with: the same bytes.

The process is not really killed: an exception that nothing catches ends the search before or after
a write. tests/test_kill.py kills real ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.interrupted import Counting, content
from tests.still_worlds import BATCH, METHODS, StillWorld


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine loses its power here."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def world_of(method: str, folder: Path) -> StillWorld:
    changes = {"verifier_args": {"name": "contrast"}} if method == "ascent" else {}
    return StillWorld.made(folder, method, **changes)


def runs_equal(world: StillWorld, kills: Iterable[int]) -> None:
    """Interrupt runs at writes, go on with each, and compare."""
    whole = world.whole
    assert "state" not in whole.content and len(whole.content["candidates.jsonl"]) > 4
    for number in kills:
        Counting.begin()
        folder = world.killed(f"killed{number}", number)
        told_before = len(Counting.told)
        world.go_on(folder)
        assert content(folder) == whole.content, f"killed at {number}"
        assert 0 <= Counting.images - whole.images <= BATCH, f"killed at {number}"
        # Whoever judges whole sets has heard of every prompt once more, in order.
        assert Counting.told[told_before:] == whole.told or told_before == len(whole.told)
        shutil.rmtree(folder)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_a_write_goes_on_to_the_same_bytes(method: str, tmp_path: Path) -> None:
    world = world_of(method, tmp_path)
    first = 5 * list(METHODS).index(method) % 41
    runs_equal(world, range(first, 2 * world.whole.writes, 41))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_any_write_goes_on_to_the_same_bytes(method: str, tmp_path: Path) -> None:
    world = world_of(method, tmp_path)
    runs_equal(world, range(2 * world.whole.writes))
