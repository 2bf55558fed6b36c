"""Results for the eyes: collages of each prompt's rounds, or a page, curves and tables of runs.

Without a flag, collages of the best of each search round. Reads records, and never a model unless
--features names one.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path

from utils import UserError, write_atomically

RESULT = "prompt@*_hash@*_i@*_s@*.json"
EXPORTS = (
    "imagefolder",
    "parquet",
    "preferences",
    "preferences_trl",
    "geneval",
    "t2i_compbench",
)
DEPTH_OF_A_RUN = 4  # output/<model>/<verifier>/<metric>/<time>


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pictures of every run folder named; 0 if each folder gave some, else 2."""
    arguments = _parser().parse_args(argv)
    try:
        folders = list(dict.fromkeys(chain.from_iterable(map(_folders, arguments.path))))
    except UserError as error:
        _tell(f"error: {error}")
        return 2
    if arguments.export is not None:
        return _export(arguments, folders)
    if arguments.budget is not None and not arguments.paper_table:
        _tell("error: --budget goes with --paper_table.")
        return 2
    done = _paper_table(arguments, folders) if arguments.paper_table else None
    folders = [run for folder in folders for run in _runs(folder)]
    if arguments.simulate is not None:
        return _simulate(arguments.simulate, folders)
    if arguments.push_to_hub is not None:
        _tell("error: --push_to_hub goes with --export: say what to push.")
        return 2
    try:
        status = _write_views(arguments, folders)
    except UserError as error:
        _tell(f"error: {error}")
        return 2
    if (status is None and done is None) or arguments.per_round:
        status = max(status or 0, _write_collages(arguments, folders))
    return max(status or 0, done or 0)


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


def _write_views(arguments: argparse.Namespace, folders: Sequence[Path]) -> int | None:
    """What is made of runs as a whole; None if none of it is wanted."""
    from experiment.report_views import Views, write_views

    views = Views(**{field: getattr(arguments, field) for field in Views.__dataclass_fields__})
    views.refuse(len(folders))
    if not views.any:
        return None
    try:
        return write_views(views, folders, _tell)
    except BrokenPipeError:
        return _hang_up()
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
            return _hang_up()
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--path",
        nargs="+",
        action="extend",
        required=True,
        metavar="RUN",
        help="run folders, comparisons, or patterns like 'output/*/*/*/*'; the pictures are written"
        " into the runs' own",
    )
    parser.add_argument(
        "--per_round",
        action="store_true",
        help="also write a grid of all candidates of each round, with seeds and scores",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="where report, curves and tables go (RUN if unset), or an export (RUN/export_KIND)",
    )
    parser.add_argument(
        "--simulate",
        metavar="POLICY",
        help="what pruning would have brought, from recorded previews: halving@0.5, or best",
    )
    parser.add_argument(
        "--paper_table",
        action="store_true",
        help="of comparisons: paper_table.md, .csv and .tex, verifier and method by metric",
    )
    parser.add_argument(
        "--budget",
        type=int,
        metavar="NFE",
        help="with --paper_table: at which budget (default: the largest that all methods have)",
    )
    exports = parser.add_argument_group("exports", "data sets of the runs' images; no pictures")
    exports.add_argument(
        "--export",
        choices=EXPORTS,
        metavar="KIND",
        help=f"write all runs' scored images as one of {', '.join(EXPORTS)}; see docs/exports.md",
    )
    exports.add_argument(
        "--margin",
        type=float,
        default=0.0,
        help="preferences: how far apart the scores of a pair must be (default 0)",
    )
    exports.add_argument(
        "--push_to_hub", metavar="REPO", help="upload the export to this dataset repository"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="write report.html: rounds, curves, candidates, lineages, and runs side by side",
    )
    parser.add_argument(
        "--curves",
        action="store_true",
        help="write curves.png: best score so far against compute, expected best of n draws",
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="write table.csv and table.md: means with intervals, win rates, ranks by the judges",
    )
    parser.add_argument(
        "--top_k", type=int, default=0, metavar="K", help="write each prompt's best K images as one"
    )
    parser.add_argument(
        "--features",
        metavar="CHECKPOINT",
        help="with --table: a vision model, to tell how varied the winners are",
    )
    parser.add_argument(
        "--statistics",
        metavar="FILE",
        help="with --features: mu and sigma of real images under it, for the Fréchet distance",
    )
    return parser


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
            margin=arguments.margin,
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
