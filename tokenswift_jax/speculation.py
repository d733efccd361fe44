"""The speculation settings of a caller; none of them changes the text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tokenswift_jax.errors import UserError, check_whole, is_whole
from tokenswift_jax.modes import MODES, SCHEDULES, check_used, used_fields

DRAFT_BLOCKS = (16, 32, 64, 128, 256)  # the full cache's capacity is a multiple of each
DRAFT_WEIGHTS = ("int8", "int4")


@dataclass(frozen=True)
class SpeculationConfig:
    """The settings of drafting (paper sections 3.1 to 3.3).

    A field without an effect in the mode keeps its default: another value raises UserError.

    Attributes:
      mode: `autoregressive` draws one token a step; `tokenswift` drafts with draft heads and n-grams; `medusa` drafts
        with the heads alone, on the verified state; `selfspec` drafts a chain of 4 with the backbone over the draft
        cache; `ngram` drafts n-gram chains alone; `auto` picks what is fastest, plain decoding among it.
      schedule: for `tokenswift`: `partial` drafts with a forward over the draft cache, `fused` reads the verified
        hidden state; `auto` picks the faster one, and never decodes plainly.
      tree: candidates per depth, the backbone's first; `fused` and `medusa` do not use the first entry. None: the
        checkpoint's node set for the schedule, or one candidate of the backbone and three of each head if it has none.
      node_budget: nodes verified per iteration, best first; None for the whole tree, except that modes `tokenswift`,
        `medusa` and `ngram` verify 3 nodes on a CPU unless `tree` or `ngram_k` is given.
      ngram_k: n-gram chains per key; 0 switches them off.
      ngram_slots: continuations that the n-gram table keeps per first token.
      draft_cache: slots of the draft cache, `draft_sinks` of them for the first positions.
      draft_block: None: the draft cache copies the best single positions. A number, a power of two from 16 to 256: it
        names the best blocks of this many positions of the full cache and copies nothing.
      refresh_interval: select the draft cache again after this many tokens; None: when it is used up.
      shared_noise: rank sampled drafts with the noise that the target's draw will use. Without it, heads and backbone
        draft their most likely tokens, which match fewer draws (kept for comparison).
      draft_weights: `int8` or `int4`: draft with the weights in 8 or 4 bits (verification keeps its own); None: draft
        with the target's own weights.
      draft_cache_dtype: `int8`: the draft cache stores its K/V in 8 bits, with a scale each; None: it stores them as
        the full cache does.
    """

    mode: str = "auto"
    schedule: str = "auto"
    tree: tuple[int, ...] | None = None
    node_budget: int | None = None
    ngram_k: int = 20
    ngram_slots: int = 32
    draft_cache: int = 4096
    draft_sinks: int = 16
    draft_block: int | None = None
    refresh_interval: int | None = None
    shared_noise: bool = True
    draft_weights: str | None = None
    draft_cache_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"mode {self.mode!r} is unknown; known: {', '.join(MODES)}", arguments=("mode",))
        if self.schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise UserError(f"schedule {self.schedule!r} is unknown; known: {known}", arguments=("schedule",))
        if self.tree is not None:
            object.__setattr__(self, "tree", _tree(self.tree))
        self._at_least("node_budget", 1, optional=True)
        self._at_least("ngram_k", 0)
        self._at_least("ngram_slots", 1)
        self._at_least("draft_sinks", 0)
        self._at_least("refresh_interval", 1, optional=True)
        # Without room for more than the sinks, every token would need another selection.
        self._at_least("draft_cache", self.draft_sinks + 16)
        if self.draft_block is not None:
            self._at_least("draft_block", 1)
            self._check_blocks(self.draft_block)
        if not isinstance(self.shared_noise, bool):
            raise UserError(
                f"shared_noise is {self.shared_noise!r}; it must be True or False", arguments=("shared_noise",)
            )
        if self.draft_weights not in (None, *DRAFT_WEIGHTS):
            known = ", ".join(DRAFT_WEIGHTS)
            raise UserError(
                f"draft_weights {self.draft_weights!r} is unknown; known: {known}", arguments=("draft_weights",)
            )
        if self.draft_cache_dtype not in (None, "int8"):
            raise UserError(
                f"draft_cache_dtype {self.draft_cache_dtype!r} is unknown; known: int8",
                arguments=("draft_cache_dtype",),
            )
        if self.draft_cache_dtype is not None and self.draft_block is not None:
            raise UserError(
                "draft_block reads the full cache in place; leave draft_cache_dtype out",
                arguments=("draft_block", "draft_cache_dtype"),
            )
        check_used(self._chosen(), self.mode, self.schedule)
        if self.mode == "ngram" and self.ngram_k == 0:
            raise UserError("mode 'ngram' needs ngram_k of at least 1", arguments=("mode", "ngram_k"))

    @property
    def used(self) -> frozenset[str]:
        """The fields that have an effect in this mode and schedule, `mode` excepted."""
        return used_fields(self.mode, self.schedule)

    def with_mode(self, mode: str, schedule: str = "auto") -> SpeculationConfig:
        """The same settings in another mode, and the defaults of the fields that it does not use."""
        kept = used_fields(mode, schedule) - {"schedule"}
        return SpeculationConfig(mode, schedule, **{name: getattr(self, name) for name in kept})

    def _chosen(self) -> list[str]:
        """The fields whose values are not the defaults."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]

    def _at_least(self, name: str, low: int, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is not None or not optional:
            object.__setattr__(self, name, check_whole(name, value, low))

    def _check_blocks(self, block: int) -> None:
        if block not in DRAFT_BLOCKS:
            known = ", ".join(map(str, DRAFT_BLOCKS))
            raise UserError(f"draft_block is {block!r}; it must be one of {known}", arguments=("draft_block",))
        # The cache needs the sinks' blocks, the newest one, and one that newer blocks can replace.
        least = (-(-self.draft_sinks // block) + 2) * block
        if self.draft_cache < least or self.draft_cache % block:
            raise UserError(
                f"draft_cache is {self.draft_cache}; with draft_block {block} and draft_sinks {self.draft_sinks} it "
                f"must be {least} or another multiple of {block} above",
                arguments=("draft_cache", "draft_block", "draft_sinks"),
            )


def _tree(value: Any) -> tuple[int, ...]:
    given = value.tolist() if hasattr(value, "tolist") else value  # an array
    widths = tuple(given) if isinstance(given, list | tuple) else ()
    if len(widths) < 2 or not all(is_whole(width, 1) for width in widths):
        raise UserError(
            f"tree {value!r:.80}: at least two depths of at least 1 candidate, such as 1,3,3,3", arguments=("tree",)
        )
    return tuple(map(int, widths))
