"""At the edges of a run: full disks, closed pipes, early signals, dead owners, mute judges."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import experiment.lock
import experiment.shard_files
from experiment.config import parse_config
from experiment.interrupts import Interrupted, warned_while_loading
from experiment.runner import load, run
from experiment.shard_files import alone
from experiment.stops import Stopped
from main import main
from tests.graders import Brightness, Near
from tests.test_run import config, results
from verifiers.base import Item, Score

LIST = [sys.executable, "main.py", "--list"]


def test_a_full_disk_is_told_in_one_sentence_wherever_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "config.json")

    monkeypatch.setattr("experiment.listing.listing", full)
    assert main(["--list"]) == 4
    assert capsys.readouterr().err == "The disk is full: make room and resume.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_log_on_the_full_disk_ends_in_no_traceback() -> None:
    with open("/dev/full", "w") as log:
        done = subprocess.run(LIST, stdout=log, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (4, "The disk is full: make room and resume.\n")


def test_a_reader_that_leaves_is_nobodys_fault() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as gone:
        done = subprocess.run(LIST, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_name_that_is_too_long_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pipeline_config_path=configs/shapes_flux.json", "--resume", "x" * 300]) == 2
    assert capsys.readouterr().err.startswith("A name is too long: ")


def test_a_warning_while_weights_load_leaves_with_the_code_of_a_run_to_go_on_with() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        warned_while_loading()
        with pytest.raises(Interrupted) as leaving:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert leaving.value.code == 4


def test_the_silence_of_an_owner_on_another_machine_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that a scheduler has moved finds its own lock, from the machine that died."""
    for module in (experiment.lock, experiment.shard_files):
        monkeypatch.setattr(module, "DEAD", 0.3)
        monkeypatch.setattr(module, "BEAT", 0.1)
    lock = tmp_path / ".lock"
    lock.write_text('{"pid": 7, "host": "died"}')
    with alone(tmp_path):
        assert json.loads(lock.read_text())["host"] == socket.gethostname()
    assert "Process 7 on died" in capsys.readouterr().out


class Mute(Brightness):
    """A judge that never answers."""

    def score(self, items: list[Item]) -> list[Score]:  # type: ignore[override]
        return [Score.missing("away") for _ in items]


def test_a_judge_that_never_answers_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiment.stops.UNSCORED_IN_A_ROW", 3)
    judged = config(
        judges=[{"name": "tests.test_troubles:Mute"}],
        search_args={"search_method": "random", "search_rounds": 4},
    )
    with pytest.raises(Stopped, match=r"no score from the judge .tests\.test_troubles:Mute"):
        run(parse_config(judged), str(tmp_path))


def test_who_finds_the_named_run_begun_after_loading_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = parse_config(
        config(verifier_args={"name": "tests.graders:Near"}, search_args={"search_rounds": 1})
    )
    first: list[Any] = []

    def slowly(*args: Any) -> Any:
        if not first:
            first.append(None)
            first[0] = results(run(asked, str(tmp_path), run_name="r").folder)
        return load(*args)

    monkeypatch.setattr("experiment.runner.load", slowly)
    asks: list[None] = []
    monkeypatch.setattr(Near, "meeting", lambda: asks.append(None))
    folder = run(asked, str(tmp_path), run_name="r").folder
    assert results(folder) == first[0] and len(asks) == 1
