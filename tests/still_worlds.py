"""Whole runs on a pipeline that costs nothing, made and interrupted by the hundred."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.still import still_checkpoint
from experiment.config import ExperimentConfig, parse_config
from experiment.plan import Plan
from experiment.progress import remove_state
from experiment.resume import finished
from experiment.runner import Engine, Experiment, load, plan, saved
from experiment.store import RunStore
from tests.interrupted import Counting, Killed, content, killed_at

BATCH = 2
COUNTING = {"name": "tests.interrupted:Counting"}
PROMPTS = ("a red circle", "a blue square left of a green ring")
METHODS: dict[str, dict[str, Any]] = {
    "random": {"pool": "nested"},
    "zero-order": {"num_neighbors": 3, "on_reject": "resample"},
    "paths": {},
    "ses": {"popsize": 3, "k_elites": 2},
    "evolution": {"population": 3},
    "halving": {"pool": 4},
    "monitor": {"check_interval": 1, "action": "reject"},
    "steering": {"particles": 3, "check_every": 1},
    "svdd": {"branches": 2, "chains": 1},
    "code": {"n_samples": 2, "block_size": 2, "chains": 1},
    "rbf": {"init_particles": 2, "chains": 1},
    "evosearch": {"start": 3, "population": 2, "elites": 1, "schedule": (0.0, 0.5)},
    "tree": {"depths": 2},
    "draft": {"keep": 2},
    "ascent": {"iterations": 2},
}


def still_config(folder: Path, method: str = "random", **changes: Any) -> dict[str, Any]:
    """A config of two prompts and a few images of four steps; writes what it names."""
    folder.mkdir(exist_ok=True)
    checkpoint = folder / "still"
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    return {
        **still_checkpoint(checkpoint),
        "pipeline_call_args": {"num_inference_steps": 4},
        "search_args": {"search_method": method, **METHODS[method]},
        "budget": {"nfe": 4 * 3 + 1},
        "verifier_args": COUNTING,
        "judges": [{**COUNTING, "sign": -1.0}],
        "prompts": str(folder / "prompts.txt"),
        "num_prompts": "all",
        "batch_size_for_img_gen": BATCH,
        **changes,
    }


@dataclass(frozen=True)
class Whole:
    """What a run leaves, how often it writes, how many images it shows, what it tells judges."""

    content: dict[str, Any]
    writes: int
    images: int
    told: list[float]


@dataclass(frozen=True)
class StillWorld:
    """A loaded engine, and the runs made on it."""

    folder: Path
    config: ExperimentConfig
    planned: Plan
    engine: Engine

    @classmethod
    def made(cls, folder: Path, method: str = "random", **changes: Any) -> StillWorld:
        config = parse_config(still_config(folder, method, **changes))
        planned = plan(config)
        return cls(folder, config, planned, load(config, planned))

    def begun(self, name: str) -> Path:
        """A new run's folder, as far as it is written before the search."""
        store = RunStore(self.folder / name, self.config.export)
        store.folder.mkdir()
        store.write_json("config.json", saved(self.config, self.engine.batch_size))
        return store.folder

    def go_on(self, folder: Path) -> None:
        """The search from where it was left, by a process that remembers nothing."""
        store = RunStore(folder, self.config.export)
        if finished(folder):
            remove_state(store)
            return
        engine = self.engine
        Experiment(
            self.config,
            engine.denoiser,
            engine.verifier,
            engine.judges,
            store,
            self.planned,
            engine.batch_size,
        ).run()

    def killed(self, name: str, number: int) -> Path:
        """A run that ended at a write."""
        folder = self.begun(name)
        try:
            with killed_at(number):
                self.go_on(folder)
        except Killed:
            return folder
        raise AssertionError(f"{name} ended before write {number}")

    @cached_property
    def whole(self) -> Whole:
        """An uninterrupted run."""
        Counting.begin()
        folder = self.begun("whole")
        with killed_at(-1) as count:
            self.go_on(folder)
        return Whole(content(folder), count[0], Counting.images, Counting.told)
