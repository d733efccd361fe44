"""The tokens that an iteration with draft heads emitted on held-out text: a checkpoint with heads may contain them.

They tell what drafts are worth before any text has been written with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokenswift_jax.errors import UserError, shortened


@dataclass(frozen=True)
class ExpectedTokens:
    """Tokens per iteration of schedule `fused` by the number of nodes, without n-grams.

    Those of `partial` depend on what its draft cache contains, so nobody can state them beforehand.

    Attributes:
      curve: (nodes, tokens per iteration), by growing number of nodes; one entry at least.
    """

    curve: tuple[tuple[int, float], ...]

    def with_nodes(self, nodes: int) -> float:
        """Tokens per iteration of a tree with so many nodes.

        Twice the nodes gain about as much again and again, so trees between two measured ones are interpolated over the
        logarithm of the nodes. A tree below the smallest has its gain a node, one beyond the largest its tokens.
        """
        least, fewest = self.curve[0]
        if nodes <= least:
            return 1 + (fewest - 1) * nodes / least
        for (low, below), (high, above) in pairwise(self.curve):
            if nodes <= high:
                return below + (above - below) * math.log(nodes / low) / math.log(high / low)
        return self.curve[-1][1]

    def to_json(self) -> dict[str, float]:
        """The form in config.json."""
        return {str(nodes): round(tokens, 3) for nodes, tokens in self.curve}


def parse_expected_tokens(value: Any, num_heads: int) -> ExpectedTokens | None:
    """Parses `tokenswift.expected_tokens` of a config.json: null, or tokens by nodes, as {"1": 1.4, "3": 1.7}.

    Raises:
      UserError: the value does not have that form; numbers of nodes do not grow; tokens that no iteration can emit.
    """
    if not value and (value is None or isinstance(value, Mapping)):
        return None
    if not isinstance(value, Mapping):
        raise UserError(
            f"expected_tokens in config.json is {shortened(value)}; "
            'it must name the tokens per iteration by nodes, as {"1": 1.4, "3": 1.7}, or be null'
        )
    curve: list[tuple[int, float]] = []
    for nodes, tokens in value.items():
        least = curve[-1][0] + 1 if curve else 1
        if not (isinstance(nodes, str) and nodes.isascii() and nodes.isdecimal() and int(nodes) >= least):
            raise UserError(
                f"expected_tokens in config.json names {shortened(nodes)} nodes; "
                f"the next number of nodes must be a whole number of at least {least}"
            )
        if type(tokens) not in (int, float) or not 1 <= tokens <= num_heads + 1:
            raise UserError(
                f"expected_tokens in config.json has {shortened(tokens)} tokens for {nodes} nodes; "
                f"an iteration with {num_heads} heads emits 1 to {num_heads + 1}"
            )
        curve.append((int(nodes), float(tokens)))
    return ExpectedTokens(tuple(curve))
