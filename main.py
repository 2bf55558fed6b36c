"""Search over a diffusion model's noises and sampling paths, as a JSON config says."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from experiment.former import unknown_flags
from experiment.packages import refuse_bare_python
from utils import UserError, assignment

if TYPE_CHECKING:
    from experiment.config import ExperimentConfig
    from experiment.shards import Shard

VERSION = "0.1.0"
CONFIG = "configs/flux.1_dev.json"


class Flags(argparse.ArgumentParser):
    """Wrong flags are user errors like any other: one sentence, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help.")


def count(text: str) -> int | str | None:
    if text.lower() in ("none", "all"):
        return None if text.lower() == "none" else "all"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number, 'all' or 'None'") from None


def parser() -> Flags:
    """The flags; those of tt-scale-flux keep their names, defaults and meanings."""
    flags = Flags(prog="main.py", description=__doc__)
    add = flags.add_argument
    add("--pipeline_config_path", help=f"the JSON config (default: {CONFIG})")
    add("--prompt", help="a prompt of your own, in place of the config's prompts")
    add("--num_prompts", type=count, default=argparse.SUPPRESS, help="a number (default 2), or all")
    add("--batch_size_for_img_gen", type=int, help="images denoised at a time (default: auto)")
    add("--use_low_gpu_vram", action="store_true", help="components leave the GPU while unused")
    add(
        "--deterministic",
        action="store_true",
        help="the same bits each time, also on a GPU: slower",
    )
    add("--executor", choices=("local", "ray"), default="local", help="where prompts are searched")
    add("--set", action="append", default=[], metavar="KEY.KEY=VALUE", help="override a config key")
    add("--seed", type=int, help="the run's seed (default 0)")
    add("--output_dir", default="output", help="root of the output tree (default: output)")
    add("--resume", metavar="RUN|auto", help="go on with this run folder, or the newest run")
    add("--run_name", metavar="NAME", help="of the run folder, in place of the time; goes on in it")
    add("--num_shards", type=int, metavar="N", help="share the prompts out to so many processes")
    add("--shard_index", type=int, metavar="I", help="which of them this is, from 0")
    add(
        "--report_to",
        nargs="+",
        default=[],
        metavar="TRACKER",
        help="also log to tensorboard, wandb, trackio, comet_ml, mlflow or another tracker",
    )
    add("--dry_run", action="store_true", help="check everything and print the plan; load nothing")
    add(
        "--probe",
        type=int,
        nargs="?",
        const=8,
        metavar="NOISES",
        help="measure how scores vary with the noise, and which methods that favors (default 8)",
    )
    add("--compare", metavar="PATH", help="compare searches at equal budgets, as this JSON says")
    add("--replay", metavar="RUN", help="make a recorded candidate of this run folder again")
    add(
        "--candidate",
        metavar="[PROMPT:]ID",
        help="which, by its id in candidates.jsonl (prompts count from 0), its seed or its image's"
        " name",
    )
    add("--time_limit", type=float, help="seconds after which --compare stops between prompts")
    add("--list", action="store_true", help="list the configs, verifiers and search methods")
    add("--list_runs", action="store_true", help="list the runs below --output_dir")
    add("--version", action="version", version=VERSION)
    return flags


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, by the config key that each overrides."""
    counted = "num_prompts" in args
    number = getattr(args, "num_prompts", None)
    if args.prompt is not None and number is not None:
        raise UserError("Give either --prompt or a number for --num_prompts, not both.")
    if args.prompt is None and counted and number is None:
        raise UserError("--num_prompts=None goes with --prompt: give a prompt, a number or 'all'.")
    flags: dict[str, Any] = {}
    if args.prompt is not None or counted:
        flags |= {"prompt": args.prompt, "num_prompts": number}
    for name in ("batch_size_for_img_gen", "seed"):
        if getattr(args, name) is not None:
            flags[name] = getattr(args, name)
    if args.use_low_gpu_vram:
        flags["use_low_gpu_vram"] = True
    if args.deterministic:
        flags["engine_args.deterministic"] = True
    return flags | dict(assignment(text) for text in args.set)


def _config_path(args: argparse.Namespace) -> str:
    """The config that was named; else that of the run to go on with, or the default."""
    if args.pipeline_config_path is not None:
        return str(args.pipeline_config_path)
    if args.resume in (None, "auto"):
        return CONFIG
    path = Path(args.resume, "config.json")
    if not path.is_file():
        raise UserError(f"There is no run in '{args.resume}': give the folder of one, or 'auto'.")
    return str(path)


def _compare(args: argparse.Namespace) -> int:
    """Compare searches; 4 when the time limit left some of it for another sitting, else 3 if some
    searches failed."""
    from experiment.compare import compare, prepare
    from experiment.compare_config import load_compare_config

    config = load_compare_config(args.compare, overrides(args))
    if args.dry_run:
        print(prepare(config, args.output_dir))
        return 0
    try:
        compared = compare(config, args.output_dir, args.time_limit)
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on.", file=sys.stderr)
        raise
    if not compared.in_time:
        return 4
    return 3 if compared.failed else 0


def _replay(args: argparse.Namespace) -> int:
    from experiment.replay import replay

    if args.candidate is None:
        raise UserError(
            "--replay goes with --candidate: give PROMPT:ID (prompts count from 0, ids are in"
            " candidates.jsonl), a seed or an image's name."
        )
    changes = dict(assignment(text) for text in args.set)
    print(replay(Path(args.replay), args.candidate, changes))
    return 0


def _share(args: argparse.Namespace) -> Shard | None:
    """This process's share of the prompts, None for all; refuses flags that clash."""
    from experiment.mirror import is_url
    from experiment.shards import which_shard

    if args.resume is not None and args.run_name is not None:
        raise UserError("Give either --resume or --run_name, not both: a named run goes on anyway.")
    on_ray = args.executor == "ray"
    if on_ray and args.num_shards is not None:
        raise UserError("Ray shares the prompts out itself: leave out --num_shards.")
    shard = None if on_ray else which_shard(args.num_shards, args.shard_index)
    if args.report_to and (on_ray or shard is not None):
        raise UserError(
            "Several processes cannot log to one tracker's run: leave out --report_to, or search"
            " in one process (--num_shards 1)."
        )
    if shard is not None and is_url(args.output_dir):
        raise UserError(
            "Object storage has no locks for several processes: give a shared folder as"
            " --output_dir, or --executor ray."
        )
    return shard


def _root(args: argparse.Namespace) -> str:
    """Of the output tree; probes have one of their own."""
    return str(args.output_dir) if args.probe is None else f"{args.output_dir}/probe"


def _run(config: ExperimentConfig, args: argparse.Namespace) -> int:
    """The whole experiment, or this process's share of it; 3 if some prompts failed."""
    from experiment.interrupts import warned_while_loading
    from experiment.mirror import output_place
    from experiment.probe import findings
    from experiment.runner import run
    from experiment.sharded import run_shard

    shard = _share(args)
    warned_while_loading()
    where = (args.resume, args.run_name)
    with output_place(config, _root(args), *where) as place:
        if args.executor == "ray":
            from experiment.ray_run import run_on_ray

            ran = run_on_ray(config, place, *where)
        elif shard is not None:
            ran = run_shard(config, place.root, shard, *where)
        else:
            ran = run(config, place.root, *where, args.report_to)
        if found := findings(ran.folder, config):
            print(found)
    return 3 if ran.failed else 0


def _dry_run(config: ExperimentConfig, args: argparse.Namespace) -> int:
    from experiment.dry_run import dry_run
    from experiment.tracker import asked_trackers

    asked_trackers(args.report_to)
    _share(args)
    print(dry_run(config, _root(args), args.resume, args.run_name, args.probe))
    return 0


def main(argv: list[str] | None = None) -> int:
    try:
        args, unknown = parser().parse_known_args(argv)
        if unknown:
            raise UserError(unknown_flags(unknown))
        refuse_bare_python()
        if args.list:
            from experiment.listing import listing

            print(listing())
            return 0
        if args.list_runs:
            from experiment.runs import listed_runs

            print(listed_runs(args.output_dir))
            return 0
        if args.candidate is not None and args.replay is None:
            raise UserError("--candidate goes with --replay: name the run folder that it is in.")
        if args.report_to and (args.compare or args.replay or args.probe is not None):
            raise UserError("--report_to goes with a search: leave it out here.")
        if args.replay is not None:
            return _replay(args)
        if args.compare is not None and args.probe is not None:
            raise UserError("Give either --compare or --probe, not both.")
        if args.compare is not None and args.resume is not None:
            raise UserError("A comparison goes on by itself: leave out --resume.")
        if args.compare is not None:
            return _compare(args)
        if args.time_limit is not None:
            raise UserError("--time_limit goes with --compare: give a comparison's config.")
        from experiment.config import load_config

        config = load_config(_config_path(args), overrides(args))
        if args.dry_run:
            return _dry_run(config, args)
        if args.probe is not None:
            from experiment.probe import set_up

            config = set_up(config, args.probe).config
        return _run(config, args)
    except UserError as error:
        print(error, file=sys.stderr)
        return getattr(error, "code", 2)
    except KeyboardInterrupt as interrupt:
        return getattr(interrupt, "code", 130)
    except OSError as error:
        return _refused_by_the_system(error)


def _refused_by_the_system(error: OSError) -> int:
    """The exit code, after one sentence where there is one to say; raises what is nobody's fault.

    What has been done is on disk in either case.
    """
    if error.errno == errno.EPIPE:
        _print_no_more()  # whoever read what was printed has left
        return 128 + signal.SIGPIPE
    if error.errno == errno.ENAMETOOLONG:
        print(f"A name is too long: {error.filename}", file=sys.stderr)
        return 2
    from experiment.stops import STOPPED, disk_full

    if not disk_full(error):
        raise error
    with contextlib.suppress(OSError):  # stderr may be a file on that disk
        print("The disk is full: make room and resume.", file=sys.stderr)
    _print_no_more()
    return STOPPED


def _print_no_more() -> None:
    """What could not be printed would fail again as the process ends."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())
