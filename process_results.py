"""Results for the eyes: collages of each prompt's rounds, or a page, curves and tables of runs.

Without a flag, collages of the best of each search round. Reads records, and never a model unless
--features or --judge names one.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterable, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from experiment.packages import refuse_bare_python
from experiment.results_flags import parser, refuse_clashes
from utils import UserError, assignment, write_atomically

if TYPE_CHECKING:
    from experiment.report_views import Views

RESULT = "prompt@*_hash@*_i@*_s@*.json"
DEPTH_OF_A_RUN = 4  # output/<model>/<verifier>/<metric>/<time>


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the flags say with every run folder named; 0 if each gave something, else 2.

    3 where a judge has left something without a score.
    """
    arguments = parser(__doc__).parse_args(argv)
    try:
        refuse_bare_python()
        refuse_clashes(arguments)
        return _made(arguments, _distinct(chain.from_iterable(map(_folders, arguments.path))))
    except UserError as error:
        _tell(f"error: {error}")
        return 2
    except BrokenPipeError:
        return _hang_up()


def _made(arguments: argparse.Namespace, named: Sequence[Path]) -> int:
    """The status of all that is asked for; what one folder lacks costs no other."""
    judged, compared = bool(arguments.judge), arguments.paper_table  # which has its own word on it
    sound = [folder for folder in named if compared or _holds_results(folder, judged=judged)]
    status = 0 if len(sound) == len(named) else 2
    if not sound:
        return status
    runs = _distinct(run for folder in sound for run in _runs(folder))
    if arguments.export is not None:
        return max(status, _export(arguments, runs))
    if arguments.simulate is not None:
        return max(status, _simulate(arguments.simulate, runs))
    missing = len(named) - len(sound)
    views = _views(arguments, len(runs) + missing)  # refused before a judge is paid
    done = [status]
    if arguments.judge:
        done.append(_judge(arguments, sound))
    if arguments.paper_table:
        done.append(_paper_table(arguments, sound))
    if views.any:
        done.append(_write_views(views, runs))
    if len(done) == 1 or arguments.per_round:
        done.append(_write_collages(arguments, runs))
    return 2 if 2 in done else max(done)


def _distinct(folders: Iterable[Path]) -> list[Path]:
    """Each folder once, by the first name that it is given."""
    found: dict[Path, Path] = {}
    for folder in folders:
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _judge(arguments: argparse.Namespace, folders: Sequence[Path]) -> int:
    from experiment.judges import read_judges
    from experiment.judging import judge_folders

    judges = read_judges(arguments.judge, dict(map(assignment, arguments.set)))
    say = partial(print, flush=True)
    try:
        return judge_folders(folders, judges, arguments.budget, say, _tell)
    except KeyboardInterrupt:
        _tell("interrupted; what was judged is kept, and the same command goes on.")
        raise
    except OSError as error:
        raise UserError(f"The judges' scores cannot be written ({error}): mend that.") from error


def _simulate(policy: str, folders: Sequence[Path]) -> int:
    """The policy on each run, under the run's name where there are several."""
    from experiment.simulate import simulate

    status = 0
    for number, folder in enumerate(folders):
        try:
            table = simulate(folder, policy)
        except UserError as error:
            _tell(f"error: {error}")
            status = 2
            continue
        if len(folders) > 1:
            print(f"{'' if number == 0 else chr(10)}{folder}")
        print(table)
    return status


def _paper_table(arguments: argparse.Namespace, folders: Sequence[Path]) -> int:
    from experiment.paper_table import write_paper_table

    if len(folders) > 1 and arguments.output is None:
        _tell("error: Several comparisons need a folder for their table: give --output.")
        return 2
    output = Path(arguments.output or folders[0])
    try:
        for path in write_paper_table(folders, output, arguments.budget, _tell):
            print(path)
    except UserError as error:
        _tell(f"error: {error}")
        return 2
    except OSError as error:
        _tell(f"error: The table cannot be written ({error}): check the permissions.")
        return 2
    return 0


def _views(arguments: argparse.Namespace, runs: int) -> Views:
    """What is to be made of runs as a whole; refuses what cannot be made of so many."""
    from experiment.report_views import Views

    views = Views(**{field: getattr(arguments, field) for field in Views.__dataclass_fields__})
    views.refuse(runs)
    return views


def _write_views(views: Views, folders: Sequence[Path]) -> int:
    from experiment.report_views import write_views

    try:
        return write_views(views, folders, _tell)
    except BrokenPipeError:
        raise
    except OSError as error:
        _tell(f"error: The results cannot be written ({error}): check the permissions.")
        return 2


def _write_collages(arguments: argparse.Namespace, folders: Sequence[Path]) -> int:
    status = 0
    for folder in folders:
        try:
            _write_pictures(folder, per_round=arguments.per_round)
        except UserError as error:
            _tell(f"error: {error}")
            status = 2
        except BrokenPipeError:
            raise
        except OSError as error:
            _tell(
                f"error: The pictures of {folder} cannot be made ({error}): check the permissions."
            )
            status = 2
    return status


def _hang_up() -> int:
    """Who read the list of files has left: `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _folders(path: str) -> list[Path]:
    """The folder of this name, or else all that the pattern matches."""
    if Path(path).is_dir():
        return [Path(path)]
    if Path(path).exists():
        raise UserError(f"{path} is a file: give the run folder that holds it.")
    folders = [Path(name) for name in sorted(glob.glob(path)) if Path(name).is_dir()]
    if not folders:
        raise UserError(f"There is no folder {path}: give the folder that a run has written.")
    return folders


def _runs(folder: Path) -> list[Path]:
    """A comparison's runs at its largest budget, or the run that the folder is."""
    from experiment.paper_read import comparison_runs

    return comparison_runs(folder) or [folder]


def _export(arguments: argparse.Namespace, folders: Sequence[Path]) -> int:
    # Here, so that --help needs no Pillow.
    from experiment.export import export

    try:
        folder, notes = export(
            folders,
            arguments.export,
            output=arguments.output,
            margin=arguments.margin or 0.0,
            repository=arguments.push_to_hub,
        )
    except UserError as error:
        _tell(f"error: {error}")
        return 2
    except OSError as error:
        _tell(f"error: The export cannot be written ({error}): check the permissions.")
        return 2
    for note in notes:
        _tell(note)
    print(folder)
    return 0


def _write_pictures(folder: Path, *, per_round: bool) -> None:
    # Here, so that --help needs no Pillow.
    from experiment.collage import pictures
    from experiment.video_collage import rendered

    # An image can stand in two pictures; one warning is enough.
    warn = cache(lambda message: _tell(f"warning: {message}"))
    planned = list(pictures(folder, per_round=per_round, tell=warn))
    if not planned:
        raise UserError(f"There are no results in {folder}: {_remedy(folder)}.")
    written = 0
    for picture in planned:
        content = rendered(picture, warn)
        if content is not None:
            write_atomically(folder / picture.name, content)
            print(folder / picture.name, flush=True)
            written += 1
    if not written:
        raise UserError(
            f"None of the images or videos in {folder} can be read: run the search again."
        )


def _holds_results(folder: Path, *, judged: bool) -> bool:
    """Whether there is anything of a run, or for judges of a benchmark; else says where it is."""
    from experiment.export_folders import SAMPLES
    from experiment.paper_read import comparison_runs

    signs = ["config.json", "candidates.jsonl", "prompt@*"]
    signs += [SAMPLES, f"*/{SAMPLES}"] if judged else []
    if any(next(folder.glob(sign), None) for sign in signs) or comparison_runs(folder):
        return True
    _tell(f"error: There are no results in {folder}: {_remedy(folder)}.")
    return False


def _remedy(folder: Path) -> str:
    """A run somewhere below the folder, if there is one: the likely mistake is a level too high."""
    for depth in range(1, DEPTH_OF_A_RUN + 1):
        for result in folder.glob("*/" * depth + RESULT):
            return f"give a run's own folder, such as {result.parent}"
    return "give a folder in which at least one search round has finished"


def _tell(message: str) -> None:
    print(f"process_results.py: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
