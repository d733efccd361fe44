"""The contenders of the paper's protocol: a mode and how it drafts."""

from __future__ import annotations

from tokenswift_jax.speculation import SpeculationConfig

TRANSFORMERS = "transformers"
# What others are compared with runs first.
CONTENDERS = (
    *("autoregressive", TRANSFORMERS, "tokenswift-partial", "tokenswift-fused"),
    *("medusa", "selfspec", "ngram", "auto"),
)
NEED_HEADS = ("tokenswift-partial", "tokenswift-fused", "medusa")


def speculation_of(name: str, node_budget: int | None, draft_cache: int) -> SpeculationConfig:
    """How a contender other than transformers' generate drafts; `auto` chooses its node budget for itself."""
    mode, _, schedule = name.partition("-")
    return SpeculationConfig(
        mode=mode,
        schedule=schedule or "auto",
        node_budget=node_budget if mode in ("tokenswift", "medusa", "ngram") else None,
        draft_cache=draft_cache,
    )


def labels_of(speculation: SpeculationConfig) -> dict[str, object]:
    """The fields of a row that say how drafts were made; None where the mode has no such thing."""
    tokenswift = speculation.mode == "tokenswift"
    over_cache = speculation.mode in ("selfspec", "auto") or (tokenswift and speculation.schedule != "fused")
    with_ngrams = tokenswift or speculation.mode in ("ngram", "auto")
    by_model = speculation.mode not in ("autoregressive", "ngram")
    return {
        "implementation": "tokenswift_jax",
        "mode": speculation.mode,
        "schedule": speculation.schedule if tokenswift else None,
        "tree": speculation.tree,
        "node_budget": speculation.node_budget,
        "ngram_k": speculation.ngram_k if with_ngrams else None,
        "draft_cache": speculation.draft_cache if over_cache else None,
        "refresh_interval": speculation.refresh_interval if over_cache else None,
        "draft_block": speculation.draft_block if over_cache else None,
        "draft_cache_dtype": speculation.draft_cache_dtype if over_cache else None,
        "shared_noise": speculation.shared_noise if by_model else None,
        "draft_weights": speculation.draft_weights if by_model else None,
    }
