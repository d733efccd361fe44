"""Training windows: stretches of one book, some with their middle left out."""

from __future__ import annotations

import numpy as np

from demo.recipe import Phase


class WindowSampler:
    """Draws windows at random offsets; the draw depends on seed and step alone, so a resumed run continues it.

    Attributes:
      plain, wrapped: token ids of each book, unwrapped and hard-wrapped.
      span: no window reaches over more positions than this.
    """

    def __init__(self, plain: list[np.ndarray], wrapped: list[np.ndarray], wrapped_share: float, span: int, seed: int):
        self.plain, self.wrapped, self.wrapped_share = plain, wrapped, wrapped_share
        self.span, self.seed = span, seed

    def sample(self, phase: Phase, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and positions, both int32 [batch, length + 1]; a jump of the positions marks a gap."""
        rng = np.random.default_rng([self.seed, step])
        windows = [self._window(rng, phase) for _ in range(phase.batch)]
        return np.stack([w[0] for w in windows]), np.stack([w[1] for w in windows])

    def _window(self, rng: np.random.Generator, phase: Phase) -> tuple[np.ndarray, np.ndarray]:
        books = self.wrapped if rng.random() < self.wrapped_share else self.plain
        sizes = np.array([len(book) for book in books], np.float64)
        book = books[rng.choice(len(books), p=sizes / sizes.sum())]
        rows = phase.length + 1
        positions = np.arange(rows, dtype=np.int32)
        largest = min(self.span, len(book)) - rows
        if largest > 1 and rng.random() < phase.gap_share:
            # log-uniform: short and long jumps alike
            skip = int(np.exp(rng.uniform(0.0, np.log(largest))))
            positions[rng.integers(1, rows) :] += skip
        start = rng.integers(0, len(book) - positions[-1])
        return book[start + positions].astype(np.int32), positions
