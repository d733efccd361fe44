"""The end of an iteration: the accepted path of the verified tree, and its tokens in the text."""

from __future__ import annotations

from pallas_kernels.commit_text import reference
from pallas_kernels.commit_text.rows import Acceptance, Committed, Ends, Text, TreeRows
from pallas_kernels.implementation import choose

__all__ = ["Acceptance", "Committed", "Ends", "Text", "TreeRows", "commit_text"]

# The kernel holds the mask in registers.
_MOST_ROWS = 128


def commit_text(tree: TreeRows, text: Text, ends: Ends, depth: int) -> Committed:
    """Accepts the one path of the tree on which every token is the draw of the row above it, and writes its tokens to
    the text. The first row without a draw, EOS or stop length, in the order of the text, cuts them.

    On a GPU one kernel does it and writes to the arrays that it is given; XLA would launch eleven.

    Args:
      tree: the verified tree; unique by (parent, token).
      text: the texts; the caller keeps length + depth + 2 within the capacity.
      ends: where the texts end.
      depth: static, the deepest level that the tree can have.
    """
    fits = tree.tokens.shape[1] <= _MOST_ROWS
    if choose("commit_text", ("reference", "gpu") if fits else ("reference",)) == "gpu":
        # Without this late import, a process on CPU waits for the import of Pallas, which it never uses.
        from pallas_kernels.commit_text import gpu

        return gpu.commit_text(tree, text, ends, depth)
    return reference.commit_text(tree, text, ends, depth)
