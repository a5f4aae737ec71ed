"""Which inputs of a linear layer to remove, and the weights that then come closest to its outputs.

The layer is a convolution seen at sampled pixels: Y = U·W, with a row of U for each pixel and a column for each input
channel and place of the kernel. W₀ are its weights. Without the columns of some channels,

    min over W of  ‖Y − U·W‖² + λ‖W − W₀‖²,   which has the normal equations  G·W = C,
    G = UᵀU + λI,   C = UᵀY + λW₀,   λ = 1e-4 of the mean of diag(UᵀU).

The ridge draws to W₀ and not to 0, so that where nothing is lost nothing changes. At the minimum, removing the columns
I of one more channel raises the objective by

    tr(W_Iᵀ · [G⁻¹]_II⁻¹ · W_I),

and leaves W − G⁻¹_{:,I}·[G⁻¹]_II⁻¹·W_I with the inverse G⁻¹ − G⁻¹_{:,I}·[G⁻¹]_II⁻¹·G⁻¹_{I,:}. The channel with the
smallest rise goes first. That is the Optimal Brain Surgeon (Hassibi & Stork 1993) for a quadratic objective, by groups
as in Optimal Brain Compression (Frantar & Alistarh 2022); choosing channels by reconstruction is from He et al. 2017
and ThiNet (Luo et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

DAMPING: Final = 1e-4

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """The normal equations of a layer that reads `channels` channels.

    Attributes:
        gram: G (n, n), the columns of a channel side by side.
        cross: C (n, outputs).
        energy: ‖Y‖² + λ‖W₀‖²: the objective without any column.
        signal: ‖Y − mean‖², which errors are compared with.
        channels: how many channels the n columns belong to.
    """

    gram: Doubles
    cross: Doubles
    energy: float
    signal: float
    channels: int

    @classmethod
    def of(cls, patches: Floats, outputs: Floats, weights: Floats, channels: int) -> LeastSquares:
        """Return those of U (rows, n), Y (rows, outputs) and W₀ (n, outputs)."""
        u, y, w = (np.asarray(array, np.float64) for array in (patches, outputs, weights))
        gram = u.T @ u
        ridge = DAMPING * float(np.trace(gram)) / len(gram)
        ridge = ridge or 1.0  # where all inputs are zero, any weights do
        gram[np.diag_indices_from(gram)] += ridge
        energy = float((y**2).sum() + ridge * (w**2).sum())
        signal = float(((y - y.mean(axis=0)) ** 2).sum())
        return cls(gram, u.T @ y + ridge * w, energy, signal, channels)

    def columns(self, channels: Sequence[int]) -> npt.NDArray[np.intp]:
        """Return the columns of `channels`, in their order."""
        group = len(self.gram) // self.channels
        return (np.asarray(channels, np.intp)[:, None] * group + np.arange(group)).ravel()

    def fitted(self, channels: Sequence[int]) -> Doubles:
        """Return the weights (columns, outputs) that are best with these channels alone."""
        kept = self.columns(channels)
        return np.asarray(np.linalg.solve(self.gram[np.ix_(kept, kept)], self.cross[kept]), np.float64)

    def objective(self, channels: Sequence[int]) -> float:
        """Return the smallest objective with these channels alone."""
        return self.energy - float((self.fitted(channels) * self.cross[self.columns(channels)]).sum())


@dataclass(frozen=True)
class Elimination:
    """Channels in the order in which they went, and what is left.

    Attributes:
        removed: the first that went first.
        kept: ascending.
        objectives: before the first removal, and after each.
    """

    removed: tuple[int, ...]
    kept: tuple[int, ...]
    objectives: tuple[float, ...]


class _Downdating:
    """W and the blocks [G⁻¹]_JJ of the channels J that are left.

    G⁻¹ itself is not updated: with [G⁻¹]_II = L·Lᵀ at each removal, it is the first one less Σ V·Vᵀ, V = G⁻¹_{:,I}·L⁻ᵀ.
    A removal needs the columns I of that alone, which takes fewer operations and reads less memory than the whole.
    """

    def __init__(self, problem: LeastSquares, removals: int) -> None:
        count, size = problem.channels, len(problem.gram)
        self._group = size // count
        self._inverse: Doubles = np.asarray(np.linalg.inv(problem.gram), np.float64)
        self._weights: Doubles = self._inverse @ problem.cross
        places = np.arange(count)
        self._blocks: Doubles = self._inverse.reshape(count, self._group, count, self._group)[places, :, places, :]
        self._factors: Doubles = np.empty((size, self._group * removals))
        self._used = 0
        self.is_left = np.ones(count, bool)

    def objective(self, problem: LeastSquares) -> float:
        """Return the objective with all channels that are left, before the first removal."""
        return problem.energy - float((self._weights * problem.cross).sum())

    def costs(self) -> Doubles:
        """Return the rise of the objective, (channels,), that removing each causes; infinite of one that is gone."""
        parts = self._weights.reshape(len(self.is_left), self._group, -1)[self.is_left]
        costs = np.full(len(self.is_left), np.inf)
        costs[self.is_left] = (parts * np.linalg.solve(self._blocks[self.is_left], parts)).sum(axis=(1, 2))
        return costs

    def remove(self, channel: int) -> None:
        """Remove a channel that is left."""
        gone = slice(channel * self._group, (channel + 1) * self._group)
        known = self._factors[:, : self._used]
        columns = self._inverse[:, gone] - known @ known[gone].T
        lower = np.linalg.cholesky(self._blocks[channel])
        factor = np.linalg.solve(lower, columns.T).T
        self._weights -= factor @ np.linalg.solve(lower, self._weights[gone])
        blocks = factor.reshape(len(self.is_left), self._group, self._group)
        self._blocks -= blocks @ blocks.transpose(0, 2, 1)
        self._factors[:, self._used : self._used + self._group] = factor
        self._used += self._group
        self.is_left[channel] = False


def eliminate(problem: LeastSquares, keep: int) -> Elimination:
    """Remove the cheapest channel until `keep` are left; among equals the last goes first.

    >>> u = np.eye(3)
    >>> eliminate(LeastSquares.of(u, u @ [[3.0], [1.0], [2.0]], np.array([[3.0], [1.0], [2.0]]), 3), 1).removed
    (1, 2)
    """
    state = _Downdating(problem, problem.channels - keep)
    removed, objectives = list[int](), [state.objective(problem)]
    for _ in range(problem.channels - keep):
        costs = state.costs()
        channel = len(costs) - 1 - int(np.argmin(costs[::-1]))
        state.remove(channel)
        removed.append(channel)
        objectives.append(objectives[-1] + float(costs[channel]))
    return Elimination(tuple(removed), tuple(np.flatnonzero(state.is_left).tolist()), tuple(objectives))
