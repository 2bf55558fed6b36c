"""A file system that fills up: once there is room, the run ends as if there always had been."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from experiment.stops import Stopped
from tests.interrupted import content
from tests.still_worlds import StillWorld


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_file_system_stops_the_run_and_room_lets_it_end(small: Path, tmp_path: Path) -> None:
    world = StillWorld.made(tmp_path / "world", "steering")
    expected = world.whole.content
    folder = replace(world, folder=small).begun("run")
    with pytest.raises(Stopped, match="The disk is full: make room and resume"):
        world.go_on(folder)
    assert (folder / "state").exists() and not (folder / "summary.json").exists()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
    world.go_on(folder)
    assert content(folder) == expected
