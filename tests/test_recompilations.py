"""Compiled functions: how many graphs serve all batch sizes, and which of them serves which."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from benchmarks.gpu_results import RECOMPILATIONS
from pipelines.batch_marks import sharing_graphs
from pipelines.compiling import compile_denoisers, convolves, retraced, undo
from pipelines.denoiser import Denoiser
from pipelines.parts import denoisers
from tests.families import FAMILIES

ORDERS = [(4, 1, 2, 8), (1, 4, 2), (2, 1, 4, 1), (8, 4, 2, 1)]


class Backend:
    """Runs graphs as they are; knows how many it made, by what, and which ran last."""

    def __init__(self) -> None:
        self.ran: int | None = None
        self.made: Counter[str] = Counter()

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        number = self.graphs
        self.made[_function()] += 1

        def run(*args: Any) -> Any:
            self.ran = number
            return graph.forward(*args)

        return run

    @property
    def graphs(self) -> int:
        return sum(self.made.values())

    @property
    def recompilations(self) -> int:
        return self.graphs - len(self.made)


def _function() -> str:
    """The function that is being compiled."""
    found = torch._guards.CompileContext.current_compile_id()
    assert found is not None
    return str(found.frame_id)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# One function -------------------------------------------------------------------------------------


def block(x: Tensor, shift: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rows with a number of their own each, [n, 4, 6] and [n, 6]; tables [4, 6] are of no row."""
    table, more = tables
    return x * table + more + shift[:, None]


def called(function: Any, rows: int, tables: tuple[Tensor, Tensor]) -> Tensor:
    result: Tensor = function(torch.ones(rows, 4, 6), shift=torch.ones(rows, 6), tables=tables)
    return result


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("first_apart", [False, True])
def test_the_graph_depends_on_nothing_but_the_size(order: Sequence[int], first_apart: bool) -> None:
    """Even of batches with as many rows as a table, which is one object all the time."""
    backend = Backend()
    function = sharing_graphs(torch.compile(block, backend=backend), first_apart=first_apart)
    tables = torch.rand(4, 6), torch.rand(4, 6)
    serving: dict[int, set[int | None]] = {}
    for rows in (*order, *reversed(order), *order):
        torch.testing.assert_close(called(function, rows, tables), called(block, rows, tables))
        serving.setdefault(rows, set()).add(backend.ran)
    alone = {1, order[0]} if first_apart else {1}
    shared = {graph for rows, graphs in serving.items() if rows not in alone for graph in graphs}
    own = [graph for rows in alone for graph in serving[rows]]
    assert len(shared) == 1 and len(own) == len(alone) and not shared & {*own}
    assert backend.graphs == len(shared) + len(own) == backend.recompilations + 1


def test_marks_are_gone_after_the_call() -> None:
    """Else a tensor would carry them to the next model, whose first batch it may be."""
    function = sharing_graphs(torch.compile(block, backend=Backend()), first_apart=True)
    tables = torch.rand(4, 6), torch.rand(4, 6)
    for rows in (4, 2):
        x, shift = torch.ones(rows, 4, 6), torch.ones(rows, 6)
        function(x, shift, tables)
        left = {name for each in (x, shift, *tables) for name in vars(each)}
        assert not [name for name in left if "static" in name or "weak" in name or "mark" in name]


def test_a_table_keeps_its_size_in_the_graph() -> None:
    """Marked like the batch, it is fixed by what it meets: only the rows stay open."""
    fixed: list[list[int]] = []

    def seeing(graph: torch.fx.GraphModule, _: Any) -> Any:
        inputs = [node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder")]
        shapes = [each.shape for each in inputs if isinstance(each, Tensor)]
        fixed.extend([int(size) for size in shape if str(size).isdigit()] for shape in shapes)
        return graph.forward

    function = sharing_graphs(torch.compile(block, backend=seeing), first_apart=False)
    called(function, 3, (torch.rand(4, 6), torch.rand(4, 6)))
    assert sorted(fixed) == [[4, 6], [4, 6], [4, 6], [6]]


# Models -------------------------------------------------------------------------------------------


class Small:
    """A family's small pipeline, a step at a time."""

    def __init__(self, family: str) -> None:
        made = FAMILIES[family]
        self.one = Denoiser(made.build(), made.call_args)
        self.parts = denoisers(self.one.pipe)

    def step(self, n: int, guidance: float = 1.0) -> Tensor:
        seeds = tuple(range(n))
        drawn = self.one.draw("a red circle", seeds)
        start = drawn.step
        return self.one.denoise(
            "a red circle", drawn.latents, seeds, start, start + 1, guidance
        ).latents


UNGUIDED = (1.0, 0.1)  # factors: the second leaves a batch without its rows of guidance
CASES = [
    ("flux", (4, 1, 2, 8), (1.0,)),
    ("pixart", (2, 1, 3), (1.0,)),
    ("flux", (1, 4, 2), (1.0, 0.5)),
    ("klein", (4, 1, 2, 8), UNGUIDED),
    ("pixart", (1, 4, 2), UNGUIDED),
    # Under 16 rows, where torch's convolutions on a CPU draw a line of their own, in float32.
    ("sd15", (4, 1, 2, 7), UNGUIDED),
    ("sd3", (1, 4, 2), UNGUIDED),
    *[(family, (4, 1, 2), (1.0,)) for family in ("wan", "ltx", "z_image", "sana", "dit")],
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "order", "factors"),
    [pytest.param(*case, marks=pytest.mark.slow if i > 0 else ()) for i, case in enumerate(CASES)],
    ids=["-".join(map(str, (family, *order))) for family, order, _ in CASES],
)
def test_at_most_two_recompilations_serve_all_batch_sizes_and_change_nothing(
    family: str, order: Sequence[int], factors: Sequence[float]
) -> None:
    small, backend = Small(family), Backend()
    batches = list(itertools.product(order, factors))
    eager = [small.step(*batch) for batch in batches]
    rows = small.one.rows
    compile_denoisers(small.parts, backend=backend)
    for batch, expected in zip(batches, eager, strict=True):
        torch.testing.assert_close(small.step(*batch), expected)
    assert small.one.rows == 2 * rows
    made = backend.graphs
    assert made > 0 and backend.recompilations <= RECOMPILATIONS
    for batch in reversed(batches):
        small.step(*batch)
    assert backend.graphs == made
    undo(small.parts)
    small.step(5)
    assert backend.graphs == made


class Doubling(torch.nn.Module):
    """As a denoiser that is compiled as a whole."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_compiled_anew_the_first_size_is_another() -> None:
    backend, model = Backend(), Doubling()
    served = []
    for order in ((2, 3, 2), (3, 2, 3)):
        retraced([model], backend=backend)
        for n in order:
            assert model(torch.ones(n)).sum() == 2 * n
            served.append(backend.ran)
    assert served == [0, 1, 0, 2, 3, 2]


def test_a_copy_for_drafts_has_a_first_size_of_its_own() -> None:
    backend, model = Backend(), Doubling()
    copied = copy.deepcopy(model)
    compile_denoisers([model, copied], backend=backend)
    served = []
    for one, n in ((model, 2), (copied, 3), (model, 3), (copied, 2), (model, 2), (copied, 3)):
        assert one(torch.ones(n)).sum() == 2 * n
        served.append(backend.ran)
    assert served == [0, 1, 2, 2, 0, 1]


def test_blocks_that_convolve_are_known() -> None:
    """They keep a graph of their first size, as a whole UNet does."""
    names = FluxTransformer2DModel._repeated_blocks
    parts = Small("flux").parts[0].modules()
    blocks = [part for part in parts if type(part).__name__ in names]
    assert blocks and not any(map(convolves, blocks))
    assert convolves(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Conv3d(2, 2, 1)))
