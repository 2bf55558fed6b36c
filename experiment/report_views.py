"""Everything that is made of runs as they were recorded: page, curves, tables, the best images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiment.report_measures import Told, told
from experiment.report_read import read_run
from experiment.report_run import LeftOut, Run
from utils import UserError, write_atomically

REASONS = 3  # for failed prompts, the most frequent
NAMED = 20  # things left out of a run, beyond which they are only counted

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Views:
    """What is wanted.

    output: where page, curves and tables go; a single run's own folder where it is not given.
    top_k: 0 for no pictures of the best. features: a vision model's checkpoint, for what `table`
    says of winners as a set. statistics: of real images under it.
    """

    report: bool = False
    curves: bool = False
    table: bool = False
    top_k: int = 0
    output: str | None = None
    features: str | None = None
    statistics: str | None = None

    @property
    def any(self) -> bool:
        return self.report or self.curves or self.table or self.top_k > 0

    def refuse(self, folders: int) -> None:
        """Refuse what cannot be made of so many runs."""
        if self.top_k < 0:
            raise UserError(f"--top_k is a number of images, not {self.top_k}.")
        if self.features and not self.table:
            raise UserError("--features adds numbers to the tables: give --table too.")
        if self.statistics and not self.features:
            raise UserError("--statistics are of a model's features: name it with --features.")
        if folders > 1 and self.output is None and (self.report or self.curves or self.table):
            raise UserError("Several runs need a folder for what is made of them: give --output.")


def write_views(views: Views, folders: Sequence[Path], tell: Tell) -> int:
    """Write what is wanted and print each file's name; 2 if a folder gave nothing, else 0."""
    views.refuse(len(folders))
    runs: list[Run] = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except UserError as error:
            tell(f"error: {error}")
    status = 0 if len(runs) == len(folders) else 2
    if not runs:
        return status
    for run in runs:
        _tell_state(run, tell)
        _tell_left_out(run, run.left_out, tell)
    for path in _written(views, told(runs), tell):
        print(path, flush=True)
    return status


def _written(views: Views, runs: Sequence[Told], tell: Tell) -> Iterator[Path]:
    output = Path(views.output) if views.output else runs[0].run.folder
    if views.report or views.curves or views.table:
        output.mkdir(parents=True, exist_ok=True)
    if views.report:
        from experiment.report import REPORT, write_report

        for each in write_report(runs, output / REPORT):
            tell(f"warning: {each.why}")
        yield output / REPORT
    if views.curves:
        from experiment.report_curves import write_report_curves

        if write_report_curves(runs, output / "curves.png"):
            yield output / "curves.png"
        else:
            tell("warning: there are no curves: nothing was scored.")
    if views.table:
        yield from _tables(views, runs, output)
    if views.top_k:
        for run in runs:
            yield from _top(run, views.top_k, tell)


def _tables(views: Views, runs: Sequence[Told], output: Path) -> Iterator[Path]:
    from experiment.report_features import galleries
    from experiment.report_table import write_tables

    found = galleries(runs, views.features, views.statistics) if views.features else []
    yield from write_tables(runs, output, found)


def _top(run: Told, k: int, tell: Tell) -> Iterator[Path]:
    from experiment.drawing import draw
    from experiment.top_k import top_pictures
    from utils import png_bytes

    warn = cache(lambda message: tell(f"warning: {message}"))
    for picture in top_pictures(run, k):
        image = draw(picture, warn)
        if image is not None:
            path = run.run.folder / picture.name
            write_atomically(path, png_bytes(image))
            yield path


def _tell_state(run: Run, tell: Tell) -> None:
    """Say what of a run is not there to be seen."""
    if run.unfinished:
        of = f" of {run.wanted}" if run.wanted > len(run.searched) or run.asked else ""
        tell(f"note: {run.folder} is unfinished: {run.done}{of} prompts are done.")
    reasons = Counter(run.failed.values()).most_common(REASONS)
    if reasons:
        said = "; ".join(f"{reason} ({count})" for reason, count in reasons)
        tell(f"warning: {len(run.failed)} of {run.wanted} prompts of {run.folder} failed: {said}")


def _tell_left_out(run: Run, left_out: Sequence[LeftOut], tell: Tell) -> None:
    if not left_out:
        return
    tell(f"warning: {len(left_out)} left out of {run.folder}:")
    for each in left_out[:NAMED]:
        tell(f"warning:   {each.name}: {each.why}")
    if len(left_out) > NAMED:
        tell(f"warning:   and {len(left_out) - NAMED} more")
