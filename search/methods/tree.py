"""Diffusion tree search, DTS and DTS* (Jain et al. 2025, arXiv 2506.20701, §4).

Finished images send their scores up a tree of the states they came from, so that paths branch again
where they went well: late for little, early where a branch has shown its worth.

Where ours differs. Paths branch at a handful of levels, not at every step: the steps between two
levels are one edge. Several paths grow at once, so that they share batches; those that start deeper
join the others when these reach their level. Values are worked out anew from all of today's
scores, so that scores may depend on the pool, and are measured in the scores' own spread. And the
greedy search never returns to a finished image, from which nothing new can come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import ClassVar, Self

import torch
from torch import Tensor

from search.branching import check_counts
from search.core import Candidates, Flow, Need, Rollout, Space, joined, step_at
from search.resampling import Unit

BATCHES = 4  # the fewest in which a tree has been chosen from and grown several times
FREE_DRAWS = 10  # in a row, of images that are there already, before another is made


@dataclass(eq=False)
class Node:
    """A state on a path, the root above all of them, or a finished image.

    state: of one candidate; None at the root and at images. visits: how often a path was started
    from here or below, or an image below was drawn. opened: children, with those under way. value:
    the soft mean of the children's values; an image's is its score; nan where nothing is known.
    """

    state: Candidates | None = None
    visits: int = 0
    opened: int = 0
    value: float = math.nan
    children: list[Node] = field(default_factory=list)

    def extended(self, states: Candidates | None = None) -> Node:
        """A new child, visited by the path that it lies on, which goes on unless it ends here."""
        child = Node(states, visits=1, opened=0 if states is None else 1)
        self.children.append(child)
        return child

    def informed(self) -> list[Node]:
        """The children whose value is known, or all of them where none is."""
        return [child for child in self.children if math.isfinite(child.value)] or self.children

    def back_up(self, strength: float) -> float:
        """The soft Bellman value: 1 / strength log mean exp(strength v) over the children."""
        if self.children:
            values = [child.back_up(strength) for child in self.children]
            known = [value for value in values if math.isfinite(value)]
            self.value = _soft_mean(known, strength) if known else math.nan
        return self.value


@dataclass(frozen=True)
class Tree:
    """Grow a tree of sampling paths, from the states whose images score best.

    depths: levels at which paths branch, spread evenly over sampling; the first is the root, from
    which fresh noises are drawn, and with 1 this is best of N. greedy: from level to level, take
    the child of the highest value plus exploration sqrt(log N(parent) / N(child)) (DTS*: look for
    the best image). Else draw it in proportion to exp(strength v) (DTS: images are drawn from
    p(x) exp(strength r(x)) in the limit of many). strength: lambda; it also sets how far a value
    leans from the mean of what lies below, at 0, towards the best of it.

    widening, widening_power: C and a. A state that has been visited N times has at most C N^a
    children; where it may have one more, it gets it. normalise: values count in standard
    deviations of all scores so far, so that strength and exploration fit any verifier, else in the
    verifier's own unit, which the limit above needs. parallel: paths grown at once; a batch is a
    round. nfe: denoiser calls the tree may grow by.

    A finished image without a score says nothing of the states above it.

    It goes on for as long as it may. A budget sets `nfe`, so that paths are only started that can
    be finished, the last of them deep in the tree where one costs least; a small one also has
    fewer of them in `parallel`, so that there are four batches.
    """

    depths: int = 4
    greedy: bool = True
    strength: float = 4.0
    exploration: float = 1.0
    widening: float = 1.0
    widening_power: float = 0.5
    normalise: bool = True
    parallel: int = 4
    nfe: int | None = None

    needs: ClassVar[frozenset[Need]] = frozenset({"midway", "stochastic"})
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_counts(depths=self.depths, parallel=self.parallel)
        if not 0 < self.strength < math.inf:
            raise ValueError(f"strength must be above 0, not {self.strength}")
        if not self.exploration >= 0:
            raise ValueError(f"exploration must be 0 or more, not {self.exploration}")
        if not self.widening > 0:
            raise ValueError(f"widening must be above 0, not {self.widening}")
        if not 0 < self.widening_power <= 1:
            raise ValueError(
                f"widening_power must be within (0, 1], not {self.widening_power}: 1 gives every"
                " visit a child of its own"
            )
        if self.nfe is not None and self.nfe < 1:
            raise ValueError(f"nfe must be at least 1 or unset, not {self.nfe}")

    def sized(self, steps: int, nfe: int) -> Self:
        limit = max(1, nfe if self.nfe is None else min(self.nfe, nfe))
        parallel = max(1, min(self.parallel, limit // steps // BATCHES))
        return replace(self, nfe=limit, parallel=parallel)

    def flow(self, space: Space) -> Flow:
        yield from self.growing(space, Node())

    def growing(self, space: Space, root: Node) -> Flow:
        """The flow, which grows the tree under this root."""
        levels = self._levels(space)
        costs = [space.steps - level for level in levels]
        left = math.inf if self.nfe is None else self.nfe
        images: list[Node] = []
        ids: tuple[int, ...] = ()
        for round in count(1):
            origins = self._origins(root, costs, left, space.rng)
            if not any(origins):
                return
            left -= sum(cost * len(nodes) for cost, nodes in zip(costs, origins, strict=True))
            tips: list[Node] = []
            moving: Candidates | None = None
            for level, until in enumerate([*levels[1:], space.steps]):
                tips += origins[level]
                if not tips:
                    continue
                moving = _setting_out(space, moving, origins[level])
                final = until == space.steps
                scored = yield Rollout(
                    moving, until, score=final, rivals=ids if final else (), round=round
                )
                moving = scored.candidates
                tips = _extended(tips, None if final else moving)
            images += tips
            ids += scored.ids
            self._value(root, images, torch.cat([scored.rival_scores, scored.scores]))

    def _levels(self, space: Space) -> list[int]:
        """The steps at which paths branch, ascending, the start of sampling first."""
        midway = {step_at(space, i / self.depths) for i in range(1, self.depths)}
        return [space.first, *sorted(step for step in midway if step < space.steps)]

    def _origins(
        self, root: Node, costs: Sequence[int], left: float, rng: torch.Generator
    ) -> list[list[Node]]:
        """For each level the nodes there from which the next paths start; none where none fits."""
        origins: list[list[Node]] = [[] for _ in costs]
        for _ in range(self.parallel):
            path = self._path(root, costs, left, rng)
            if not path:
                break
            level = len(path) - 1
            path[-1].opened += 1
            origins[level].append(path[-1])
            left -= costs[level]
        return origins

    def _path(
        self, root: Node, costs: Sequence[int], left: float, rng: torch.Generator
    ) -> list[Node]:
        """From the root to a node that gets a child; nothing where no child can be paid for."""
        if costs[-1] > left:
            return []
        for _ in range(FREE_DRAWS):
            path = [root]
            while len(path) <= len(costs):
                node, level = path[-1], len(path) - 1
                if costs[level] <= left and self._opens(node, last=level == len(costs) - 1):
                    return _visited(path)
                if not node.children:
                    return []  # too little is left for the first path of all
                path.append(self._child(node, rng))
            _visited(path)  # an image was drawn again, for nothing: that too widens its path
        return path[:-1]

    def _opens(self, node: Node, last: bool) -> bool:
        """Whether a node gets another child; one without any that is finished always does."""
        if not node.children or (self.greedy and last):
            return True
        return node.opened < self.widening * node.visits**self.widening_power

    def _child(self, node: Node, rng: torch.Generator) -> Node:
        children = node.informed()
        values = torch.tensor([child.value for child in children], dtype=torch.float64)
        values = values.nan_to_num(nan=0.0)  # none is known: all are alike
        if self.greedy:
            visits = torch.tensor([child.visits for child in children], dtype=torch.float64)
            bonus = self.exploration * (math.log(node.visits) / visits).sqrt()
            return children[int((values + bonus).argmax())]
        weights = (self.strength * values).softmax(0)
        return children[int(torch.multinomial(weights, 1, generator=rng))]

    def _value(self, root: Node, images: Sequence[Node], scores: Tensor) -> None:
        """The value of every node, from the scores of all images as they stand today."""
        values = Unit().seen(scores).measure(scores) if self.normalise else scores
        for image, value in zip(images, values.tolist(), strict=True):
            image.value = value
        root.back_up(self.strength)


def _setting_out(space: Space, moving: Candidates | None, origins: Sequence[Node]) -> Candidates:
    """The candidates on their way, joined at this level by new ones from its origins.

    The root has no state: from it noises are drawn.
    """
    states = [node.state for node in origins if node.state is not None]
    new = None
    if states:
        new = space.fork(joined(states), range(len(states)))
    elif origins:
        new = space.draw(len(origins))
    both = [candidates for candidates in (moving, new) if candidates is not None]
    return joined(both)


def _extended(tips: Sequence[Node], states: Candidates | None) -> list[Node]:
    """Each path's new last node: at these states, or finished images."""
    return [
        tip.extended(None if states is None else states.select([row]))
        for row, tip in enumerate(tips)
    ]


def _visited(path: list[Node]) -> list[Node]:
    """The path, once more visited."""
    for node in path:
        node.visits += 1
    return path


def _soft_mean(values: Sequence[float], strength: float) -> float:
    highest = max(values)
    weights = [math.exp(strength * (value - highest)) for value in values]
    return highest + math.log(math.fsum(weights) / len(weights)) / strength
