"""torch.compile for a pipeline's denoisers: what to compile, when it pays, where it is kept.

Compiled images differ from eager ones by more than their last bits, so a run keeps to one way and
its config says which. Transformers of repeated blocks are compiled block by block, in a fraction of
the time; UNets, and transformers whose blocks diffusers does not name, as a whole.
"""

from __future__ import annotations

import inspect
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from pipelines.batch_marks import sharing_graphs
from utils import cache_folder

logger = logging.getLogger(__name__)

KEPT = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps what it has compiled
Way = Literal["regional", "whole"]

# Forward passes after which compiling has paid for itself. On one H200 (bf16, torch 2.11):
# FLUX.1-dev by blocks 21 s for 39 ms a pass; SD1.5 and SDXL whole 50 to 120 s for 25 to 43 ms.
PAYS_AFTER: dict[Way, int] = {"regional": 600, "whole": 4000}


def way_of(denoiser: type) -> Way:
    """How a class of denoisers is best compiled."""
    # A UNet names only its attention blocks as repeated; its convolutions would stay eager.
    convolutional = "down_block_types" in inspect.signature(denoiser).parameters
    repeated = getattr(denoiser, "_repeated_blocks", None)
    return "regional" if repeated and not convolutional else "whole"


def pays(denoisers: Sequence[type], passes: float | None) -> bool:
    """Whether a run of so many forward passes is long enough; None: nobody knows how many."""
    return passes is not None and all(passes >= PAYS_AFTER[way_of(each)] for each in denoisers)


def compile_denoisers(
    denoisers: Sequence[nn.Module], *, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile in place, so that three graphs of a function, of a block two, serve all batch sizes.

    A single row has its own graph, all other sizes share one. What convolves, and whatever is
    compiled whole, has another for the size of its first batch: inductor chooses how tensors lie
    for convolutions only where it knows all sizes.
    """
    if backend == "inductor":
        keep_kernels()
    for denoiser in denoisers:
        if way_of(type(denoiser)) == "regional":
            compile_blocks: Any = denoiser.compile_repeated_blocks
            compile_blocks(backend=backend)
            for block in denoiser.modules():
                if (compiled := block._compiled_call_impl) is not None:
                    shared = sharing_graphs(compiled, first_apart=convolves(block))
                    block._compiled_call_impl = shared
        else:  # not the module, whose hooks count rows and stay outside the graph
            whole = torch.compile(denoiser.forward, backend=backend)
            denoiser.forward = sharing_graphs(whole, first_apart=True)


def keep_kernels() -> None:
    """Have kernels outlive the process and /tmp, unless the user has said where to keep them.

    Torch sets the variable by itself, as diffusers imports its compiler, and looks at it again each
    time. So a value that is torch's own is nobody's wish, and it is never too late for another.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    torchs = os.path.abspath(default_cache_dir())
    if os.environ.get(KEPT, torchs) != torchs:
        return
    folder = (cache_folder() / "inductor").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        logger.warning("Compiled kernels are kept in %s: %s", torchs, error)
    else:
        os.environ[KEPT] = str(folder)


def convolves(module: nn.Module) -> bool:
    """Whether there are convolutions in it: of the repeated blocks, in a few video models'."""
    return any(isinstance(each, _ConvNd) for each in module.modules())


def undo(denoisers: Sequence[nn.Module]) -> None:
    """Back to eager."""
    for denoiser in denoisers:
        denoiser.__dict__.pop("forward", None)
        for module in denoiser.modules():
            module._compiled_call_impl = None


def retraced(denoisers: Sequence[nn.Module], **options: Any) -> None:
    """Compile anew: graphs of before, of any model, may have been traced for another attention."""
    undo(denoisers)
    torch.compiler.reset()
    compile_denoisers(denoisers, **options)
