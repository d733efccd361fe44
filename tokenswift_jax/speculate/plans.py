"""Turns the caller's speculation settings into the plans that may run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import lt

from tokenswift_jax.errors import UserError
from tokenswift_jax.kv.draft_blocks import BlockTableShape
from tokenswift_jax.kv.draft_cache import DraftCachePolicy
from tokenswift_jax.kv.draft_positions import DraftCacheShape
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.node_sets import NodeSet, product_within, within_budget
from tokenswift_jax.models.node_sets import widths as widths_of
from tokenswift_jax.modes import NEED_HEADS
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.logprobs import LogprobSpec
from tokenswift_jax.speculate.drafter import Drafter, LevelDrafter
from tokenswift_jax.speculate.heads_drafter import CachedHeadsDrafter, HeadsDrafter
from tokenswift_jax.speculate.merged_drafter import MergedDrafter
from tokenswift_jax.speculate.ngram_drafter import NgramDrafter
from tokenswift_jax.speculate.no_drafter import NoDrafter
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculate.self_drafter import SelfDrafter
from tokenswift_jax.speculate.tree_spec import ROOT_ALONE, TreeSpec
from tokenswift_jax.speculation import SpeculationConfig

_WIDTH = 3  # candidates of a head without a node set (the paper's tree: 1,3,3,3)
_CHAIN = 4  # tokens that `selfspec` drafts (TriForce's and MagicDec's gamma)
# Node budgets that `auto` tries if neither the caller nor the device's roofline (`engine.row_costs`) gives any. A CPU's
# time grows with every tree row; an accelerator's depends on the bytes alone after a short text.
_AUTO_BUDGETS = {"cpu": (1, 3, 7)}
_AUTO_BUDGETS_ELSEWHERE = (15, 63)
# A CPU pays for every verified row: SmolLM2-135M on two cores, as a user measured it, decodes plainly in 30 ms a token,
# verifies 4 rows in 1.5 times that, and the whole tree of mode `ngram` in 220 ms.
_NAMED_BUDGET = {"cpu": 3}


@dataclass(frozen=True, eq=False)
class NamedPlan:
    """A plan with its names in `schedule_trace`. Policies look plans up often; a hash of the model would cost more."""

    mode: str
    schedule: str | None
    node_budget: int | None
    plan: Plan

    @property
    def label(self) -> str:
        """A label for people, such as "fused, 7 nodes"."""
        nodes = self.plan.rows - 1
        if not nodes:
            return "plain decoding"
        return f"{self.schedule or self.mode}, {nodes} node{'' if nodes == 1 else 's'}"


def autoregressive_plan(config: ModelConfig, features: SamplingFeatures) -> NamedPlan:
    """The plan of plain decoding: one row and one token per step."""
    return NamedPlan("autoregressive", None, None, Plan(config, features, NoDrafter(), ROOT_ALONE))


def with_logprobs(named: NamedPlan, logprobs: LogprobSpec | None) -> NamedPlan:
    """Returns the same plan with log-probabilities."""
    return replace(named, plan=replace(named.plan, logprobs=logprobs))


def speculative_plans(
    config: ModelConfig,
    speculation: SpeculationConfig,
    features: SamplingFeatures,
    platform: str,
    budgets: tuple[int, ...] | None = None,
) -> list[NamedPlan]:
    """The speculative plans that the configuration allows: one for a fixed mode, several for `auto`, none for
    `autoregressive`.

    Args:
      config: the model's.
      speculation: settings of the drafts.
      features: the sampling features of the plans.
      platform: of the device, as JAX names it.
      budgets: the node budgets, rising, that `auto` tries if `speculation` has none; None: the platform's.

    Raises:
      UserError: the checkpoint lacks the draft heads that they need.
    """
    mode, schedule, heads = speculation.mode, speculation.schedule, config.num_draft_heads
    if mode in NEED_HEADS:
        if not heads:
            raise UserError(
                f"mode {mode!r} needs draft heads and the checkpoint has none; use auto, ngram or selfspec",
                arguments=("mode",),
            )
        _check_tree(speculation.tree, heads)
    if mode == "autoregressive":
        return []
    if mode in ("medusa", "ngram", "selfspec"):
        return [_named(config, speculation, features, mode, None, _budget(speculation, platform), platform)]
    if mode == "tokenswift" and schedule != "auto":
        return [_named(config, speculation, features, mode, schedule, _budget(speculation, platform), platform)]
    budgets = budgets or _AUTO_BUDGETS.get(platform, _AUTO_BUDGETS_ELSEWHERE)
    if speculation.node_budget is not None:
        budgets = (speculation.node_budget,)
    plans: list[NamedPlan] = []
    if heads:
        _check_tree(speculation.tree, heads)
        plans += [_named(config, speculation, features, "tokenswift", "fused", budget, platform) for budget in budgets]
        plans += [_named(config, speculation, features, "tokenswift", "partial", budgets[-1], platform)]
    if mode == "auto" and speculation.ngram_k:
        plans += [_named(config, speculation, features, "ngram", None, budget, platform) for budget in budgets]
    return plans


def _budget(speculation: SpeculationConfig, platform: str) -> int | None:
    """The node budget of a mode asked for by name: the device's, unless the caller chose a budget or a tree."""
    chosen = speculation.node_budget is not None or speculation.tree is not None
    if chosen or speculation.ngram_k != SpeculationConfig.ngram_k or speculation.mode == "selfspec":
        return speculation.node_budget
    return _NAMED_BUDGET.get(platform)


def _check_tree(tree: tuple[int, ...] | None, heads: int) -> None:
    if tree is not None and len(tree) != heads + 1:
        shape = ",".join(map(str, tree))
        raise UserError(
            f"tree {shape} has {len(tree)} depths; {heads} draft heads need {heads + 1}", arguments=("tree",)
        )


def _named(
    config: ModelConfig,
    speculation: SpeculationConfig,
    features: SamplingFeatures,
    mode: str,
    schedule: str | None,
    budget: int | None,
    platform: str,
) -> NamedPlan:
    partial = schedule == "partial"
    widths, node_set = _heads_nodes(config, speculation.tree, mode, partial=partial)
    key_depth = 1 if partial else 0
    chain = 3 if budget is None else min(3, budget - key_depth)
    per_parent = config.draft_head_type == "sequential" and mode in ("tokenswift", "medusa")
    if budget is not None and widths:
        widths, node_set = _within(widths, node_set, budget, per_parent=per_parent)
    tree = TreeSpec(
        widths=widths,
        ngram_k=speculation.ngram_k if mode in ("tokenswift", "ngram") and chain > 0 else 0,
        ngram_depth=max(chain, 1),
        node_budget=budget,
        keyed_by_root=not partial,
        node_set=node_set,
        per_parent=per_parent,
    )
    drafter = _drafter(speculation, mode, partial=partial, chains=tree.ngram_k > 0)
    one_pass = _reads_verified_rows(config, drafter) and platform != "cpu"
    plan = Plan(config, features, drafter, tree, speculation.shared_noise, one_pass=one_pass)
    return NamedPlan(mode, schedule, budget, plan)


def _within(
    widths: tuple[int, ...], node_set: NodeSet | None, budget: int, *, per_parent: bool
) -> tuple[tuple[int, ...], NodeSet | None]:
    """Candidates per depth and node set without the nodes that no budget of this size keeps."""
    if node_set is not None:
        node_set = within_budget(node_set, budget, shared=not per_parent)
    elif per_parent:
        return tuple(min(width, budget - depth) for depth, width in enumerate(widths[:budget])), None
    else:
        node_set = product_within(widths, budget)
    return widths_of(node_set), node_set


def _reads_verified_rows(config: ModelConfig, drafter: Drafter) -> bool:
    """Whether a row's hidden state alone gives the candidates below it, from the whole LM head.

    Sequential heads read the tokens above each guess too, and those of `partial` the root's row over the draft cache,
    which runs after the verification. A draft vocabulary's columns are a smaller matrix. A CPU pays for every row.
    """
    whole = config.draft_head_type != "sequential" and config.draft_vocab is None
    return drafter.heads_depth == 1 and whole


def _drafter(speculation: SpeculationConfig, mode: str, *, partial: bool, chains: bool) -> Drafter:
    """The source of a plan's drafts."""
    ngrams = NgramDrafter(speculation.ngram_slots)
    if mode == "ngram":
        return ngrams
    levels: LevelDrafter
    if mode == "selfspec":
        levels = SelfDrafter(_draft_cache(speculation, _CHAIN))
    elif partial:
        levels = CachedHeadsDrafter(_draft_cache(speculation, 1))
    else:
        levels = HeadsDrafter()
    return MergedDrafter(levels, ngrams) if chains else levels


def _draft_cache(speculation: SpeculationConfig, chain: int) -> DraftCachePolicy:
    """The draft cache, with scratch for a drafted chain of so many rows."""
    sizes = speculation.draft_cache, speculation.draft_sinks, chain, speculation.refresh_interval
    if speculation.draft_block is None:
        return DraftCacheShape(*sizes, int8=speculation.draft_cache_dtype == "int8")
    return BlockTableShape(*sizes, speculation.draft_block)


def _heads_nodes(
    config: ModelConfig, tree: tuple[int, ...] | None, mode: str, *, partial: bool
) -> tuple[tuple[int, ...], NodeSet | None]:
    """Candidates per depth, and the checkpoint's node set if the caller gave no tree: as many as there are.

    Raises:
      UserError: the tree asks for more.
    """
    if mode in ("selfspec", "ngram"):
        return (1,) * _CHAIN if mode == "selfspec" else (), None
    most = (*[config.vocab_size] * partial, *[config.head_candidates] * config.num_draft_heads)
    if tree is None:
        node_set = config.node_sets.partial if partial else config.node_sets.fused
        if node_set is not None:
            # A checkpoint may have got its node set from an evaluation that knew no draft vocabulary.
            node_set = tuple(path for path in node_set if all(map(lt, path, most)))
            return widths_of(node_set), node_set
        return tuple(map(min, (*[1] * partial, *[_WIDTH] * config.num_draft_heads), most)), None
    widths = tree if partial else tree[1:]
    for width, count in zip(widths, most, strict=True):
        if width > count:
            kind = "vocabulary" if count == config.vocab_size else "draft vocabulary"
            shape = ",".join(map(str, tree))
            raise UserError(f"tree {shape} asks for more candidates than the {kind}'s {count}", arguments=("tree",))
    return widths, None
