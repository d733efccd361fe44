"""The frozen backbone's hidden states over packed rows, computed once: they are the same in every epoch."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.errors import writing
from tokenswift_jax.step.exact_products import exact_products
from tokenswift_jax.training.forward import hidden_states
from tokenswift_jax.training.learner import Learner
from tokenswift_jax.training.shares import ONE_DEVICE, Shares
from tokenswift_jax.training.windows import Batch, Packing


class KeptStates:
    """A file with the states of the rows read so far; it disappears with this process.

    Each row goes through the backbone alone on its device, so its states do not depend on its batch. A resumed run,
    which begins with an empty file, computes the same bits.

    Attributes:
      bytes: the size of the file after an epoch.
    """

    def __init__(self, folder: Path, learner: Learner, packing: Packing, shares: Shares = ONE_DEVICE) -> None:
        """Opens the file in `folder`, which is made where it is missing; WriteError if that cannot be written."""
        self._folder, self._learner, self._shares = folder, learner, shares
        self._shape = (packing.length, learner.config.hidden_size)
        self._dtype = np.dtype(learner.dtype)
        self._row_bytes = self._dtype.itemsize * packing.length * learner.config.hidden_size
        self.bytes = self._row_bytes * packing.rows
        self._places: dict[bytes, int] = {}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)

        # The pass reads no head, and the steps donate the first values of the heads.
        heads = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), learner.heads)

        def states(backbone: Any, rows: Batch) -> jax.Array:
            backbone = shares.gathered(backbone, layers=False)
            with exact_products(learner.dtype), shares.kernels():
                decoder = nnx.merge(learner.graph, heads, backbone)
                return hidden_states(decoder, jax.tree.map(lambda x: x[0], rows), "none", shares)

        self._states = jax.jit(states)

    def __enter__(self) -> KeptStates:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def of(self, batch: Batch) -> np.ndarray:
        """The states [accumulation, batch, length, hidden_size] over a batch [accumulation, batch, length].

        Raises:
          WriteError: the file cannot grow.
        """
        rows = [Batch(*row) for row in zip(*(part.reshape(-1, part.shape[-1]) for part in batch), strict=True)]
        missing = {key: row for row in rows if (key := _key(row)) not in self._places}
        self._compute(list(missing.values()))
        found = [self._of_row(row) for row in rows]
        return np.stack(found).reshape(*batch.tokens.shape, self._shape[-1])

    def _compute(self, rows: list[Batch]) -> None:
        """Writes the states of rows that the file does not have; each group of devices computes one row at a time."""
        groups = self._shares.groups
        for first in range(0, len(rows), groups):
            some = rows[first : first + groups]
            filled = [*some, *[some[0]] * (groups - len(some))]
            given = Batch(*(np.stack(part)[None] for part in zip(*filled, strict=True)))
            states = np.asarray(self._states(self._learner.backbone, self._shares.put_rows(given)))
            for row, own in zip(some, states, strict=False):
                with writing(self._folder):
                    self._file.seek(len(self._places) * self._row_bytes)
                    self._file.write(own.tobytes())
                self._places[_key(row)] = len(self._places)

    def _of_row(self, row: Batch) -> np.ndarray:
        self._file.seek(self._places[_key(row)] * self._row_bytes)
        return np.frombuffer(self._file.read(self._row_bytes), self._dtype).reshape(self._shape)


def _key(row: Batch) -> bytes:
    return hashlib.blake2b(b"".join(part.tobytes() for part in row), digest_size=16).digest()
