"""Pictures of finished runs: for each prompt, the best of each search round side by side."""

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
DEPTH_OF_A_RUN = 4  # output/<model>/<verifier>/<metric>/<time>


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pictures of every run folder named; 0 if each folder gave some, else 2."""
    arguments = _parser().parse_args(argv)
    try:
        folders = list(dict.fromkeys(chain.from_iterable(map(_folders, arguments.path))))
    except UserError as error:
        _tell(f"error: {error}")
        return 2
    status = 0
    for folder in folders:
        try:
            _write_pictures(folder, per_round=arguments.per_round)
        except UserError as error:
            _tell(f"error: {error}")
            status = 2
        except BrokenPipeError:  # who read the list of files has left: `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            _tell(
                f"error: The pictures of {folder} cannot be made ({error}): check the permissions."
            )
            status = 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--path",
        nargs="+",
        action="extend",
        required=True,
        metavar="RUN",
        help="run folders, or patterns like 'output/*/*/*/*'; the pictures are written into them",
    )
    parser.add_argument(
        "--per_round",
        action="store_true",
        help="also write a grid of all candidates of each round, with seeds and scores",
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


def _write_pictures(folder: Path, *, per_round: bool) -> None:
    # Here, so that --help needs no Pillow.
    from experiment.collage import pictures
    from experiment.video_collage import rendered

    planned = list(pictures(folder, per_round=per_round))
    if not planned:
        raise UserError(f"There are no results in {folder}: {_remedy(folder)}.")
    # An image can stand in two pictures; one warning is enough.
    warn = cache(lambda message: _tell(f"warning: {message}"))
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
