"""Files that are added to: a line is there whole and for good, or not at all."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiment.lines import LineFile
from tests.interrupted import Counting, content
from tests.still_worlds import StillWorld
from utils import append_whole


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The system writes up to this size, and refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_has_no_room_leaves_nothing_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    append_whole(path, b"one\n")
    with no_file_beyond(10), pytest.raises(OSError, match="File too large"):
        append_whole(path, b"two, which is too long\n")
    append_whole(path, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


def test_a_line_that_could_not_be_written_leaves_the_next_one_readable(tmp_path: Path) -> None:
    lines = LineFile(tmp_path / "lines.jsonl", "")
    lines.append({"n": 1})
    size = lines.path.stat().st_size
    with no_file_beyond(size + 20), pytest.raises(OSError):
        lines.append({"n": 2})
    lines.append({"n": 3})
    assert [line["n"] for _, line in LineFile(lines.path, "").read()] == [1, 3]


@pytest.mark.parametrize("name", ["candidates.jsonl", "prompt0.jsonl", "done.jsonl"])
def test_a_short_write_costs_no_other_prompt_its_rows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes a few bytes of a line and then fails once; the prompt is tried again."""
    world = StillWorld.made(tmp_path)
    whole = world.whole
    write, failing, written = os.write, [True], [0]

    def short(handle: int, data: bytes) -> int:
        if failing and os.readlink(f"/proc/self/fd/{handle}").endswith(name):
            written[0] += 1
            if written[0] == 2:
                return write(handle, bytes(data[:10]))
            if written[0] == 3:
                failing.clear()
                raise OSError(errno.EIO, "Input/output error")
        return write(handle, data)

    monkeypatch.setattr("os.write", short)
    folder = world.begun("short")
    if name == "done.jsonl":  # which belongs to no prompt
        with pytest.raises(OSError, match="Input/output"):
            world.go_on(folder)
    else:
        world.go_on(folder)
        assert (folder / "state").exists()
    assert not failing
    Counting.begin()
    world.go_on(folder)
    assert content(folder) == whole.content
