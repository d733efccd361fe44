"""A head's numbers in pieces with sizes that are powers of two, the only array sizes that Triton has."""

from __future__ import annotations


def head_pieces(head_dim: int) -> tuple[tuple[int, int], ...]:
    """Pieces (start, size), descending powers of two that add up to `head_dim`: 80 is (0, 64), (64, 16).

    With pieces, the kernel loads and multiplies exactly the head's numbers; for a head_dim of 80, a masked array of 128
    multiplies 60% more.

    Raises:
      ValueError: `head_dim` is no multiple of 16, the unit of the tensor cores, or exceeds 256.
    """
    if head_dim % 16 or not 16 <= head_dim <= 256:
        raise ValueError(f"head_dim is {head_dim}; the GPU kernel takes multiples of 16 up to 256")
    pieces, start = [], 0
    for bit in reversed(range(head_dim.bit_length())):
        if head_dim >> bit & 1:
            pieces.append((start, 1 << bit))
            start += 1 << bit
    return tuple(pieces)
