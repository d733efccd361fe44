"""The ways to speculate that the losslessness tests share, small enough to compile in seconds."""

from tokenswift_jax.speculation import SpeculationConfig

_TREE = {"tree": (1, 2, 2, 2), "ngram_k": 2, "ngram_slots": 4, "node_budget": 7}
# So small that the drafting modes select again many times within a test's text.
_CACHE = {"draft_cache": 64, "draft_sinks": 8}
_BLOCKS = {"draft_block": 16}  # the same slots as a table of blocks

SPECULATIONS = {
    "plain": SpeculationConfig(mode="autoregressive"),
    "partial": SpeculationConfig(mode="tokenswift", schedule="partial", **_TREE, **_CACHE),
    "partial blocks": SpeculationConfig(mode="tokenswift", schedule="partial", **_TREE, **_CACHE, **_BLOCKS),
    "fused": SpeculationConfig(mode="tokenswift", schedule="fused", **_TREE),
    "medusa": SpeculationConfig(mode="medusa", tree=(1, 2, 2, 1)),
    "selfspec": SpeculationConfig(mode="selfspec", refresh_interval=20, **_CACHE),
    "selfspec blocks": SpeculationConfig(mode="selfspec", **_CACHE, **_BLOCKS),
    "ngram": SpeculationConfig(mode="ngram", ngram_k=3, ngram_slots=4),
    "auto": SpeculationConfig(mode="auto", **_TREE, **_CACHE),
    "auto blocks": SpeculationConfig(mode="auto", **_TREE, **_CACHE, **_BLOCKS),
    "tokenswift auto": SpeculationConfig(mode="tokenswift", **_TREE, **_CACHE),
}
