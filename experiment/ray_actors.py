"""What runs on a Ray cluster: pipelines that search for a prompt, verifiers that judge for them.

Neither class knows Ray: `ray_run` makes actors of them.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiment.choices import agreed_engine
from experiment.config import ExperimentConfig, parse_config
from experiment.guests import verifier_device
from experiment.lock import DEAD, waited_for
from experiment.mirror import Mirror, mirroring
from experiment.plan import make_plan
from experiment.prompts import Prompt
from experiment.records import SHARDS, STATE, read_object
from experiment.runner import Engine, load, named_judges
from experiment.shard_files import HandedExperiment, ShardStore, clear_handed
from experiment.workplace import Workplace
from utils import UserError, find_checkpoint
from verifiers.base import Chosen, Item, Score

Ask = Callable[[str, Sequence[Item]], list[Score]]
Begun = Mapping[str, Mapping[str, Any]]
"""Contents by the files' names."""

BEGUN = ("config.json", "manifest.json")  # a run that has both has begun
VERIFIER = ""  # no judge has this name


@dataclass(frozen=True)
class Told:
    """How a prompt's search ended.

    failed: in a way that others may share. stopped: why the run cannot go on, with its exit code.
    """

    text: str
    failed: bool = False
    stopped: tuple[str, int] | None = None


@dataclass(frozen=True)
class Ready:
    """How a pipeline's start ended.

    refusal: why it cannot be used. chosen: what stands in the files of `BEGUN` as it would have
    them; None where it goes by the run's.
    """

    refusal: str | None = None
    chosen: Begun | None = None


@dataclass(frozen=True)
class Job:
    """A run, as every worker is told of it.

    folder: where all workers see it. url: where else it is kept; then each works on a copy of its
    own. cwd: where the user's relative paths begin. share: how many prompts a worker will have.
    begun: what stands in the run's files of `BEGUN`, for workers that do not see them; None while
    nobody has made the run's choices.
    """

    config: Mapping[str, Any]
    folder: str
    prompts: list[Prompt]
    cwd: str
    url: str | None = None
    share: int | None = None
    begun: Begun | None = None

    def enter(self) -> None:
        os.chdir(self.cwd)


@dataclass(frozen=True)
class Remote(Chosen):
    """A verifier whose weights are with other workers; what needs no weights is answered here."""

    ask: Ask = field(kw_only=True, compare=False)
    asked_as: str = field(kw_only=True)

    @property
    def remote(self) -> bool:
        return True

    def load(self, device: str) -> None:
        return

    def offload(self) -> None:
        return

    def score(self, items: Sequence[Item]) -> list[Score]:
        return self.ask(self.asked_as, [replace(item, memory=None) for item in items])


class Pipeline:
    """A loaded pipeline that searches for one prompt after another.

    It is made without arguments, so that Ray can make it again at any time.
    """

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._mirror: Mirror | None = None
        self._place: Workplace | None = None
        self._agreed = False  # whether the engine is as the run's choices are

    def leave(self) -> None:
        """The run has ended: nothing of it stays on this machine but what it asked for."""
        if self._place is not None:
            self._place.leave()

    def ready(self, job: Job, ask: Ask | None) -> Ready:
        """Load what there is to load, or say why that cannot be done.

        Called again with a job that names the run's choices, take those over.
        ask: scores items by verifiers that run elsewhere, which may still be loading; None: this
        worker loads its own.
        """
        self._job, self._ask = job, ask
        try:
            return Ready(chosen=self._load())
        except UserError as error:
            return Ready(str(error))

    def _load(self) -> Begun | None:
        """What was chosen, where there was nothing to go by."""
        if self._agreed:
            return None
        job = self._job
        job.enter()
        config = parse_config(dict(job.config))
        self._store = ShardStore(self._folder(), config.export)
        self._store.shards.mkdir(parents=True, exist_ok=True)
        for name, content in (job.begun or {}).items():
            self._store.write_json(name, content)
        checkpoint = find_checkpoint(config.pretrained_model_name_or_path)
        self._planned = make_plan(config, checkpoint, job.prompts)
        self._config, self._engine = agreed_engine(
            config, self._planned, self._store, lambda config: config, self._begin
        )
        self._agreed = job.url is None or job.begun is not None
        if self._agreed:
            return None
        return {name: read_object(self._store.folder / name) for name in BEGUN}

    def _folder(self) -> Path:
        """The run's, or where workers share none, one of this worker's own."""
        if self._job.url is None:
            return Path(self._job.folder)
        if self._place is None:
            self._place = Workplace()
            self._mirror = Mirror(self._job.url, self._place.folder, BEGUN)
        return self._place.folder

    def _begin(self, config: ExperimentConfig) -> Engine:
        """The engine that has made its choices alone, which gives it up; else a new one."""
        engine, self._engine = self._engine, None
        if engine is not None:
            return engine
        share = replace(self._planned, prompts=self._job.prompts[: self._job.share])
        return load(config, share, self._elsewhere)

    def _elsewhere(self, chosen: Chosen, name: str) -> Chosen:
        """The verifier, or one that asks other workers in its stead."""
        if self._ask is None:
            return chosen
        return Remote(chosen.verifier, chosen.name, chosen.metric, ask=self._asked, asked_as=name)

    def _asked(self, name: str, items: Sequence[Item]) -> list[Score]:
        """By those that had loaded when the prompt came."""
        assert self._ask is not None
        return self._ask(name, items)

    def search(self, index: int, ask: Ask | None = None) -> Told:
        """Search for a prompt, from where any worker left it. ask: as it is by now."""
        assert self._engine is not None, "ready has not been called"
        if ask != self._ask:
            self._ask = ask
        (prompt,) = (prompt for prompt in self._job.prompts if prompt.index == index)
        own = replace(self._planned, prompts=[prompt])
        experiment = self._engine.experiment(self._config, own, self._store, HandedExperiment)
        with contextlib.redirect_stdout(io.StringIO()) as text:
            try:
                with self._own(prompt):
                    clear_handed(self._store, prompt, alone=self._mirror is not None)
                    experiment.run()
            except UserError as error:
                return Told(text.getvalue(), stopped=(str(error), getattr(error, "code", 2)))
        self._engine = replace(self._engine, batch_size=experiment.batch_size)
        return Told(text.getvalue(), failed=experiment.watch.failed > 0)

    @contextmanager
    def _own(self, prompt: Prompt) -> Iterator[None]:
        """Have the prompt to oneself: whoever was only out of reach may still be at it.

        Where workers share no folder, the prompt's files are fetched, and copied as they grow.
        """
        if self._mirror is None:
            with waited_for(self._store.shards, f".prompt{prompt.index}.lock", 2 * DEAD):
                yield
            return
        unfinished = (
            f"{STATE}/prompt{prompt.index}.",
            f"{STATE}/prompt{prompt.index}_",
            f"{prompt.stem}_i@",
        )
        self._mirror.pull(starts=unfinished)
        try:
            with mirroring(self._mirror):
                yield
        finally:
            if not self._mirror.whole and self._place is not None:
                self._place.keep()
        self._mirror.drop((*unfinished, f"{STATE}/{SHARDS}/prompt{prompt.index}."))


class Judges:
    """The run's verifier and judges, loaded, for pipelines that have none."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loaded: dict[str, Chosen] = {}

    def ready(self) -> str | None:
        try:
            self._load()
        except UserError as error:
            return str(error)
        return None

    def _load(self) -> None:
        if self._loaded:
            return
        from pipelines.loading import choose_device

        self._job.enter()
        config = parse_config(dict(self._job.config))
        asked = {VERIFIER: config.verifier_args.build(), **named_judges(config)}
        engine = config.engine_args
        device = verifier_device(engine.verifier_device, choose_device(engine.device))
        for chosen in asked.values():
            chosen.load(device)
        self._loaded = asked

    def score(self, name: str, items: Sequence[Item]) -> list[Score]:
        self._load()
        return self._loaded[name].score(items)
