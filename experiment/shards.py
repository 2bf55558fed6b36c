"""Which share of a run's prompts is this process's: by flags, or as its launcher says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from experiment.prompts import Prompt, grouped
from utils import UserError, digest

TOGETHER = timedelta(minutes=5)  # within which a launcher's processes must have met


@dataclass(frozen=True)
class Shard:
    """One of `count` processes that share a run.

    source: who says so, in words. local: this process's number on its machine, if that is known.
    launch: a name for the run folder that all processes of this launch know, if there is one.
    """

    index: int
    count: int
    source: str
    local: int | None = None
    launch: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise UserError(
                f"There is no shard {self.index} of {self.count} (by {self.source}): shards count"
                " from 0, so the index must be below the number of shards."
            )

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"

    def share(self, prompts: Sequence[Prompt], together: int = 1) -> list[Prompt]:
        """This process's prompts: every `count`-th in the order of their digests.

        Any process can tell, shares differ by one prompt at most, and neighbours in a list that
        goes from short to long, or by category, are spread over all processes.
        together: so many prompts in a row stay with one process, and are shared out as one.
        """
        groups = grouped(prompts, together)
        ordered = sorted(groups, key=lambda group: (digest(group[0].text), group[0].occurrence))
        mine = [prompt for group in ordered[self.index :: self.count] for prompt in group]
        return sorted(mine, key=lambda prompt: prompt.index)


def which_shard(
    count: int | None, index: int | None, environ: Mapping[str, str] = os.environ
) -> Shard | None:
    """The shard that flags or else a launcher's environment name; None for a process alone."""
    if (count is None) != (index is None) and count != 1:
        raise UserError("--num_shards and --shard_index go together: give both.")
    if count is not None:
        found: Shard | None = Shard(index or 0, count, "--num_shards", _local(environ))
    else:
        found = _torchrun(environ) or _array(environ) or _tasks(environ)
    return None if found is None or found.count == 1 else found


def _torchrun(environ: Mapping[str, str]) -> Shard | None:
    """As torchrun and `accelerate launch` number their processes."""
    if not {"RANK", "WORLD_SIZE"} <= environ.keys():
        return None
    index, count = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    tasks = _number(environ, "SLURM_ARRAY_TASK_COUNT", 1)
    if count == 1 < tasks:
        return None  # the array shares out the prompts
    if tasks > 1:
        raise UserError(
            f"Each of {tasks} tasks of the array has launched {count} processes, and it is not"
            " plain which numbers share out the prompts: have one process a task, or, where each"
            " task is a run of its own, start the launcher by env -u SLURM_ARRAY_TASK_COUNT."
        )
    return Shard(index, count, "RANK and WORLD_SIZE", _local(environ))


def _array(environ: Mapping[str, str]) -> Shard | None:
    """As SLURM numbers the tasks of an array, which need not begin at 0."""
    if not {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"} <= environ.keys():
        return None
    count = _number(environ, "SLURM_ARRAY_TASK_COUNT")
    first = _number(environ, "SLURM_ARRAY_TASK_MIN", 0)
    step = _number(environ, "SLURM_ARRAY_TASK_STEP", 1)
    index, rest = divmod(_number(environ, "SLURM_ARRAY_TASK_ID") - first, step)
    several = count > 1 and _tasks(environ)
    if several and several.count > 1:
        raise UserError(
            f"Each of {count} tasks of the array has {several.count} processes, and it is not plain"
            " which numbers share out the prompts: give --num_shards and --shard_index."
        )
    if rest or (count > 1 and index >= count):
        raise UserError(
            "The numbers of the SLURM array have gaps: give --num_shards and --shard_index."
        )
    job = environ.get("SLURM_ARRAY_JOB_ID")
    launch = None if job is None else f"slurm_{job}"
    return Shard(index, count, "SLURM_ARRAY_TASK_ID", None, launch) if count > 1 else None


def _tasks(environ: Mapping[str, str]) -> Shard | None:
    """As srun numbers its processes; a batch script itself runs once, whatever its job may run."""
    if "SLURM_PROCID" not in environ or ("SLURM_JOB_ID" in environ) > ("SLURM_STEP_ID" in environ):
        return None
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    if name not in environ:
        return None
    job = environ.get("SLURM_JOB_ID")
    launch = None if job is None else f"slurm_{job}"
    index, count = _number(environ, "SLURM_PROCID"), _number(environ, name)
    return Shard(index, count, f"SLURM_PROCID and {name}", _local(environ), launch)


def _local(environ: Mapping[str, str]) -> int | None:
    name = next((n for n in ("LOCAL_RANK", "SLURM_LOCALID") if n in environ), None)
    return None if name is None else _number(environ, name)


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UserError(f"{name} is '{text}', which is no number: unset it, or give --num_shards.")
    return int(text)


def own_device(wanted: str, shard: Shard) -> str:
    """The process's GPU, where it has a number on a machine with several; else as wanted."""
    import torch

    if wanted not in ("auto", "cuda") or shard.local is None or not torch.cuda.is_available():
        return wanted
    there = torch.cuda.device_count()
    if there == 1:  # srun and containers show each process its own
        return wanted
    if shard.local >= there:
        raise UserError(
            f"Process {shard.local} of this machine has no GPU of its own, for there are {there}:"
            f" start at most {there} here, or set engine_args.device."
        )
    torch.cuda.set_device(shard.local)
    return f"cuda:{shard.local}"


def agreed(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """One name for all processes that torchrun has started: the first that one of them came with.

    A process that is started again finds the name that its launch began with. None where there is
    no torchrun to agree by.
    """
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import TCPStore

    store = TCPStore(
        environ["MASTER_ADDR"], _number(environ, "MASTER_PORT"), is_master=False, timeout=TOGETHER
    )
    found: bytes = store.compare_set("inference-time-scaling/run", "", name)
    return found.decode()
