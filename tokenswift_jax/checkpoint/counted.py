"""The progress of writing a checkpoint: the tensors report their bytes as the writer reads them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from tokenswift_jax.checkpoint.tensors import Index, Tensor
from tokenswift_jax.progress_report import Report, phase


@contextmanager
def counted(tensors: Sequence[Tensor], name: str, report: Report) -> Iterator[list[Tensor]]:
    """The tensors for a writer that reads each once, whole or in parts; the block is a phase of their bytes.

    A writer may read in several threads.
    """
    lock, done = threading.Lock(), 0

    def counting(read: Callable[[Index], np.ndarray]) -> Callable[[Index], np.ndarray]:
        def announced(index: Index) -> np.ndarray:
            nonlocal done
            values = read(index)
            with lock:
                done += values.nbytes
                so_far(done)
            return values

        return announced

    with phase(report, name, sum(tensor.nbytes for tensor in tensors), "bytes") as so_far:
        yield [replace(tensor, read=counting(tensor.read)) for tensor in tensors]
