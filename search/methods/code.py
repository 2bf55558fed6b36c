"""CoDe, controlled denoising in blocks (Singh et al. 2025, arXiv 2502.00968).

Copies take a block of stochastic steps each before one is chosen, so that they have parted far
enough to differ: a choice every few steps needs fewer verifications than SVDD's at every step. The
paper starts at the first step; here copies start where previews begin to say something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from search.branching import Branching, check_counts, check_share, keep_best
from search.core import Flow, Need, Space


@dataclass(frozen=True)
class Code:
    """Copies roll one block, the best by its preview is kept and copied again.

    n_samples: copies of a state (the paper: 5). block_size: steps in a block (the paper: 5); the
    last block is what is left. chains: independent states. check_from: share of the steps to take
    plainly first; 0 branches right after the first step, where copies of one noise first part.

    A budget decides over `chains`: as many as fit, and where one does not, it has fewer copies.
    """

    n_samples: int = 5
    block_size: int = 5
    chains: int = 2
    check_from: float = 0.25

    needs: ClassVar[frozenset[Need]] = frozenset({"midway", "stochastic"})
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_counts(n_samples=self.n_samples, block_size=self.block_size, chains=self.chains)
        check_share(self.check_from)

    def sized(self, steps: int, nfe: int) -> Self:
        fitted = self._branching.sized(steps, nfe)
        return replace(self, chains=fitted.chains, n_samples=fitted.branches)

    def flow(self, space: Space) -> Flow:
        yield from self._branching.flow(space, keep_best)

    @property
    def _branching(self) -> Branching:
        return Branching(self.chains, self.n_samples, self.block_size, self.check_from)
