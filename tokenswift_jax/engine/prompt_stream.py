"""The schedule of a prompt that goes through the stages of a mesh as a stream of chunks.

In tick t, stage s computes chunk t - s. Chunks are cut so that each costs a stage the same: attention costs more the
further a position is in the text, so later chunks are shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.forward_cost import attention_part, layers_part


@dataclass(frozen=True)
class PromptStream:
    """The chunks of a prompt.

    Attributes:
      stages: of the mesh.
      rows: positions of a forward; a chunk is one forward or more.
      starts: the first position of each forward. The last forward may begin before the one before it ends.
      ends: for each chunk the number of forwards in it and in the chunks before it.
      costs: operations of each chunk, on all stages together.
    """

    stages: int
    rows: int
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    costs: tuple[int, ...]

    @staticmethod
    def of(
        config: ModelConfig, stages: int, chunks: int, rows: int, positions: range, capacity: int, batch: int = 1
    ) -> PromptStream:
        """The stream of some positions of each row of a batch, in `chunks` chunks, or fewer if that many are too short.

        Args:
          config: the decoder's.
          stages, rows: as the attributes.
          chunks: to cut the prompt into.
          positions: those to compute, at least one.
          capacity: slots of the cache, in which all forwards must end.
          batch: rows of the batch.
        """
        starts = [min(start, capacity - rows) for start in positions[::rows]]
        each = [
            layers_part(config, rows * batch, 1)[1] + attention_part(config, rows, start, 1, batch)[1]
            for start in starts
        ]
        ends = cut(each, chunks)
        costs = [sum(each[begin:end]) for begin, end in zip((0, *ends), ends, strict=False)]
        return PromptStream(stages, rows, tuple(starts), tuple(ends), tuple(costs))

    @property
    def chunks(self) -> int:
        """The number of chunks."""
        return len(self.ends)

    @property
    def ticks(self) -> int:
        """Ticks until the last stage has computed the last chunk."""
        return self.chunks + self.stages - 1

    @property
    def most(self) -> int:
        """Forwards to make room for in a chunk: a power of two, so that prompts of similar lengths share a program."""
        longest = int(np.diff(self.ends, prepend=0).max())
        return 1 << (longest - 1).bit_length()

    def forwards(self, chunk: int) -> range:
        """The forwards of a chunk; none of one that does not exist."""
        if not 0 <= chunk < self.chunks:
            return range(0)
        return range(self.ends[chunk - 1] if chunk else 0, self.ends[chunk])

    @property
    def idle(self) -> float:
        """The share of the stages' time in which they wait: a tick lasts as long as its costliest chunk."""
        padded = [*[0] * (self.stages - 1), *self.costs, *[0] * (self.stages - 1)]
        ticks = sum(max(padded[tick : tick + self.stages]) for tick in range(self.ticks))
        return 1 - sum(self.costs) / ticks

    @property
    def equal_idle(self) -> float:
        """That share if all chunks cost the same: (stages - 1) / (chunks + stages - 1)."""
        return (self.stages - 1) / self.ticks


def cut(costs: Sequence[int], chunks: int) -> list[int]:
    """Where to cut a list into so many parts, or one of each entry, of about the same cost: the end of each part."""
    count = min(chunks, len(costs))
    total = np.cumsum(costs)
    ends = []
    for part in range(1, count):
        nearest = int(np.abs(total - total[-1] * part / count).argmin()) + 1
        least, most = (ends[-1] if ends else 0) + 1, len(costs) - (count - part)
        ends.append(min(max(nearest, least), most))
    return [*ends, len(costs)]
