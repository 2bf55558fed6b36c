"""Compares searches at equal compute: same prompts, same seeds, same budgets, one table.

Every method, seed and budget is a run of its own, in its own folder under
output/compare/<name>/<label>/nfe<budget>_s<seed>. A method that does the same whatever its budget
runs once, at the largest, and its best image within each smaller budget is looked up. What is done
is never done again, so a comparison may be spread over several sittings.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from experiment.calls import called, refuse_unfit
from experiment.compare_cell import Cell, Done
from experiment.compare_config import CompareConfig, metric_labels
from experiment.compare_search import CellRun
from experiment.compare_table import Measured, Table, tabulate
from experiment.compare_text import write_table
from experiment.config import ExperimentConfig
from experiment.curves import write_curves
from experiment.lock import locked
from experiment.plan import Plan, refuse_cuts
from experiment.prompts import Prompt, grouped
from experiment.resume import check_world, told_of
from experiment.runner import Engine, load, plan
from experiment.stops import Stopped, Watch, disk_full
from experiment.store import refuse_unwritable
from utils import UserError, counted, path_part, significant

CURVES = "curves.png"


@dataclass(frozen=True)
class Comparison:
    """Everything that is to be run, checked."""

    config: CompareConfig
    experiment: ExperimentConfig
    cells: tuple[Cell, ...]
    folder: Path

    @property
    def prompts(self) -> list[Prompt]:
        return self.cells[0].planned.prompts

    @property
    def blocks(self) -> list[Sequence[Prompt]]:
        """The prompts, so many at a time as all methods take in turn."""
        return grouped(self.prompts, self.config.block)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """What is tabulated; a verifier's value that holds within its own pool alone is not."""
        labels = metric_labels(self.experiment)
        return labels[1:] if self.experiment.verifier_args.make().pooled else labels

    def table(self) -> Table | None:
        """What the prompts that all methods have done come to; None where there are none."""
        measured = [
            Measured(cell.label, cell.seed, done.prompt_index, winner)
            for cell in self.cells
            for index, done in cell.done().items()
            if index in _indices(cell)
            for winner in done.winners
        ]
        return tabulate(self.config, self.metrics, measured, len(self.prompts))

    def __str__(self) -> str:
        """The plan, as it is printed."""
        budgets = ", ".join(map(str, self.config.budgets))
        seeds = ", ".join(map(str, self.config.seeds))
        lines = [
            f"comparison    {self.config.name}: {self.experiment.pretrained_model_name_or_path}",
            f"scores        {', '.join(metric_labels(self.experiment))}",
            f"prompts       {len(self.prompts)}, seeds {seeds}",
            f"budgets       {budgets} NFE per prompt",
            *(self._of_method(label) for label in self.config.methods),
            f"runs          {len(self.cells)}, {self._nfe(self.cells)} NFE in all, {self.left}",
            *(f"note          {note}" for note in self._notes()),
        ]
        return "\n".join(lines)

    def _of_method(self, label: str) -> str:
        cells = [cell for cell in self.cells if cell.label == label]
        once = "one run for all budgets" if len(cells[0].budgets) > 1 else "a run for each budget"
        return f"method        {label:<24}{once if len(self.config.budgets) > 1 else 'one run'}"

    def _notes(self) -> Iterable[str]:
        """What is odd about any of the runs, each once."""
        return dict.fromkeys(note for cell in self.cells for note in cell.planned.notes)

    def _nfe(self, cells: Sequence[Cell]) -> int:
        return sum(_most(cell) * len(self.prompts) for cell in cells)

    @property
    def left(self) -> str:
        """What is still to do, and how long at the speed so far."""
        done = [(cell, len(cell.done().keys() & _indices(cell))) for cell in self.cells]
        spent = sum(_most(cell) * n for cell, n in done)
        if not spent:
            return "none of it done"
        left = self._nfe(self.cells) - spent
        if left <= 0:
            return "all of it done"
        totals = [each.summary for cell in self.cells for each in cell.done().values()]
        speed = sum(total["nfe"] for total in totals) / sum(total["seconds"] for total in totals)
        return f"{left} left, about {_duration(left / speed)} at {speed:.3g} NFE per second so far"


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else counted(max(1, round(seconds / 60)), "minute")


def _most(cell: Cell) -> int:
    assert cell.planned.most is not None
    return cell.planned.most.nfe


def _indices(cell: Cell) -> set[int]:
    return {prompt.index for prompt in cell.planned.prompts}


def prepare(config: CompareConfig, output_dir: str) -> Comparison:
    """Check every method at every budget, and lay out the runs; loads nothing."""
    folder = Path(output_dir, "compare", path_part(config.name))
    cells = [
        cell
        for seed in config.seeds
        for label in config.methods
        for cell in _cells(config, label, seed, folder)
    ]
    return Comparison(config, cells[0].config, tuple(cells), folder)


def _cells(config: CompareConfig, label: str, seed: int, folder: Path) -> Iterator[Cell]:
    """The runs of one method at one seed: one for all budgets, or one each."""
    experiments = {budget: config.experiment(label, budget, seed) for budget in config.budgets}
    plans = {budget: _planned(label, each) for budget, each in experiments.items()}
    largest = config.budgets[-1]
    once = _same_at_any(experiments[largest], plans[largest].steps)
    groups = [config.budgets] if once else [(budget,) for budget in config.budgets]
    for budgets in groups:
        cell = Cell(
            label=label,
            config=experiments[budgets[-1]],
            planned=plans[budgets[-1]],
            budgets=budgets,
            ceilings=config.ceilings if label == next(iter(config.methods)) else (),
            folder=folder / path_part(label) / f"nfe{budgets[-1]}_s{seed}",
        )
        yield (_answered(config, cell) if once else None) or cell


def _answered(config: CompareConfig, cell: Cell) -> Cell | None:
    """A run of the same method to a larger budget that answers for these too, if there is one."""
    for path in cell.folder.parent.glob(f"nfe*_s{cell.seed}"):
        number = path.name.removeprefix("nfe").split("_")[0]
        if not number.isdecimal() or int(number) <= cell.budget:
            continue
        larger = replace(
            cell, config=config.experiment(cell.label, int(number), cell.seed), folder=path
        )
        try:
            if larger.done().keys() >= _indices(cell):
                return larger
        except UserError:  # of another config, or damaged: it answers for nothing
            continue
    return None


def _planned(label: str, config: ExperimentConfig) -> Plan:
    try:
        planned = plan(config)
    except UserError as error:
        raise UserError(f"The method '{label}' cannot run: {error}") from error
    if planned.steps is None:
        raise UserError("A comparison needs pipeline_call_args.num_inference_steps: set it.")
    return planned


def _same_at_any(config: ExperimentConfig, steps: int | None) -> bool:
    """Whether the search does the same whatever its budget, so that a run holds all shorter ones.

    Asked of every budget, not only the compared ones: a flow that ends starts again fitted to
    whatever is left. Values of a pool move with what comes later, so they cannot be looked up.
    """
    assert steps is not None and config.budget.nfe is not None
    search = config.search_args.build()
    sizes = range(steps, config.budget.nfe + 1)
    pooled = config.verifier_args.make().pooled
    return not pooled and all(search.sized(steps, nfe) == search for nfe in sizes)


@dataclass(frozen=True)
class Compared:
    """What a sitting came to: whether time did for all of it, and how many searches failed."""

    in_time: bool
    failed: int

    @property
    def whole(self) -> bool:
        return self.in_time and not self.failed


def compare(config: CompareConfig, output_dir: str, time_limit: float | None = None) -> Compared:
    """Run what is left of the comparison, until the time limit.

    The table and the picture are written anew after each block of prompts, and at the end. One
    process at a time works in a comparison's folder.
    """
    ends = None if time_limit is None else time.monotonic() + time_limit
    comparison = prepare(config, output_dir)
    refuse_unwritable(output_dir)
    comparison.folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(comparison.folder):
            return _compared(comparison, ends)
    except Stopped as stop:
        raise Stopped(f"{stop}\nThe same command goes on.") from stop
    except OSError as error:
        if not disk_full(error):
            raise
        raise Stopped("The disk is full: make room, and the same command goes on.") from error


def _compared(comparison: Comparison, ends: float | None) -> Compared:
    print(comparison, flush=True)
    sitting = _Sitting(comparison)
    in_time = _run(comparison, sitting, ends)
    for cell in comparison.cells:
        cell.finish(sitting.failed(cell))
    table = _write(comparison)
    print(
        f"Table and picture: {comparison.folder}"
        if table
        else "No prompt is done by all methods yet, so there is no table."
    )
    if sitting.failures:
        searches = counted(len(sitting.failures), "search", "searches")
        print(f"{searches} failed; the same command tries again:")
        print("\n".join(sitting.failures), flush=True)
    return Compared(in_time, len(sitting.failures))


def _run(comparison: Comparison, sitting: _Sitting, ends: float | None) -> bool:
    """Search for what is not done; False if time ran out."""
    for block in comparison.blocks:
        worked = False
        for cell in comparison.cells:
            done = []
            for prompt in sitting.todo(cell, block):
                if ends is not None and time.monotonic() >= ends:
                    return False
                worked = True
                if found := sitting.search(cell, prompt):
                    done.append(found)
            if done:
                print(_line(comparison, cell, done), flush=True)
        if worked:
            _write(comparison)
            print(comparison.left, flush=True)
    return True


class _Sitting:
    """The pipeline, loaded when the first prompt needs it, and the runs opened so far."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._done = {cell.folder: set(cell.done()) for cell in comparison.cells}
        self._runs: dict[Path, CellRun] = {}
        self._watch = Watch()

    @cached_property
    def _engine(self) -> Engine:
        cells = self._comparison.cells
        for cell in cells:
            refuse_cuts(cell.config, cell.planned.checkpoint)
            call = called(cell.config, cell.planned.checkpoint)
            refuse_unfit(cell.config, call, cell.planned.prompts)
        # Gradients need the most memory: where a method asks for them, weights are placed for it.
        climbing = [cell for cell in cells if cell.config.climbs]
        first = (*climbing, *cells)[0]
        engine = load(first.config, first.planned)
        if others := {key for cell in cells for key in check_world(cell.folder, engine.manifest)}:
            print(told_of(sorted(others)), flush=True)
        return engine

    def todo(self, cell: Cell, block: Sequence[Prompt]) -> list[Prompt]:
        return [prompt for prompt in block if prompt.index not in self._done[cell.folder]]

    def failed(self, cell: Cell) -> dict[int, dict[str, Any]]:
        """The summaries of a cell's prompts that failed."""
        run = self._runs.get(cell.folder)
        return {} if run is None else run.failed

    @property
    def failures(self) -> list[str]:
        """Which searches failed and why, a line each."""
        return [line for run in self._runs.values() for line in run.failures]

    def search(self, cell: Cell, prompt: Prompt) -> Done | None:
        if cell.folder not in self._runs:
            self._runs[cell.folder] = CellRun(cell, self._engine, self._watch)
        return self._runs[cell.folder].search(prompt)


def _line(comparison: Comparison, cell: Cell, done: Sequence[Done]) -> str:
    """What a method came to on a block of prompts, at its largest budget."""
    best = [each.winners[-1] for each in done]
    means = {
        label: sum(winner.scores[label] for winner in best) / len(best)
        for label in comparison.metrics
    }
    scores = "  ".join(f"{label} {significant(mean)}" for label, mean in means.items())
    seconds = sum(each.summary["seconds"] for each in done)
    numbers = f"{done[0].prompt_index + 1}-{done[-1].prompt_index + 1}"
    return f"prompts {numbers:<8}{cell}{scores}  ({seconds:.0f} s)"


def _write(comparison: Comparison) -> bool:
    """The table and the picture of what is done; False where no prompt is done by all."""
    table = comparison.table()
    if table is None:
        return False
    write_table(table, comparison.folder)
    write_curves(table, comparison.folder / CURVES)
    return True
