"""Caches, drafting, tree verification and whole runs against what the public reference program computed.

The reference selects its draft cache again in the forward after the one that used it up, by the query of that forward's
last row; the contract selects after the commit, by the root's query. So its dynamic updates (12 steps) are compared in
steps 0 to 6, and from its own second selection (step 8, taken as it is) to the end. Left out are the positions of step
7, where the cache is used up and the reference still holds it, and how step 8's were chosen; a selection by the root's
query is compared with the one that the arrays hold for the purpose (`reinit_root_slot_pos`).
"""

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from decoded import start
from flax import nnx

from tests.engine_fixture import layout_of, prefilled_state
from tests.golden import BOUND, arrays, checkpoint, each_checkpoint
from tokenswift_jax import SamplingConfig, SpeculationConfig
from tokenswift_jax.checkpoint import load_decoder
from tokenswift_jax.kv.dense import FullCache, empty_cache
from tokenswift_jax.kv.draft_positions import DraftCache, DraftCacheShape
from tokenswift_jax.kv.forward import forward_rows
from tokenswift_jax.kv.row_batch import RowBatch, TreeMask
from tokenswift_jax.model import Model
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.speculate.heads_drafter import CachedHeadsDrafter
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculate.plans import autoregressive_plan
from tokenswift_jax.speculate.tree_spec import TreeSpec
from tokenswift_jax.step.draft import draft_tree

PROMPT, CAPACITY, SINKS = 96, 256, 16
ROWS = 49  # of the largest tree
GREEDY = SamplingConfig(temperature=0.0, min_p=None, repetition_penalty=1.0)

pytestmark = each_checkpoint
close = partial(np.testing.assert_allclose, rtol=0, atol=BOUND)


@cache
def model(name):
    config, graph, params = load_decoder(checkpoint(name))
    return Model(Path(name), config, None, {}, graph, params, "float32", (), None)


def ints(values):
    return jnp.asarray(values, jnp.int32)


@partial(jax.jit, static_argnums=0)
def compute(graph, params, tokens, positions, cache, lengths, mask):
    """Rows, logits [rows, vocab] and, for row 0, what the draft heads give [4, size] and [4, vocab]; the cache."""
    decoder = nnx.merge(graph, params)
    rows, cache = forward_rows(decoder, RowBatch(tokens, positions, lengths, TreeMask(mask)), cache)
    first = rows.hidden[0, 0]
    normed = jnp.concatenate([decoder.norm(first)[None], decoder.draft_heads(first)])
    return rows, decoder.logits(rows.hidden)[0], (normed, decoder.project(normed)), cache


@partial(jax.jit, static_argnums=(6, 7))
def _commit(draft, cache, rows, path, before, after, config, shape):
    cache = cache.keep(rows.new, path, before)
    return cache, shape.advance(draft, cache, rows.new.along(path), before, after, rows.query, config)


_rebuild = jax.jit(lambda *args: args[-1].rebuild(*args[:-1]), static_argnums=(4, 5))


@dataclass(frozen=True)
class Text:
    """A text over its caches, one row, driven by scripted tokens."""

    model: Model
    shape: DraftCacheShape
    length: int
    cache: FullCache
    draft: DraftCache

    def rows(self, tokens, depths=None, mask=None) -> tuple[Any, Any, FullCache]:
        """A target forward of at most ROWS tokens after the committed ones; by default a causal chunk.

        Rows past the tokens mean nothing, and nobody sees them: one number of rows, one compilation.
        """
        count = len(tokens)
        padded = np.zeros((1, ROWS), np.int32)
        padded[0, :count] = tokens
        positions = np.full((1, ROWS), self.length, np.int32)
        positions[0, :count] += np.arange(count) if depths is None else depths
        seen = np.eye(ROWS, dtype=bool)
        seen[:count, :count] = np.tril(np.ones((count, count), bool)) if mask is None else mask
        call = (ints(padded), ints(positions), self.cache, ints([self.length]), jnp.asarray(seen)[None])
        rows, logits, _, cache = compute(self.model.graphdef, self.model.params, *call)
        return rows, logits[:count], cache

    def commit(self, rows, cache, path):
        """The text after the rows of a path, at the contract's positions."""
        padded = np.zeros((1, ROWS), np.int32)
        padded[0, : len(path)] = path
        after = self.length + len(path)
        cache, draft = _commit(
            self.draft, cache, rows, ints(padded), ints([self.length]), ints([after]), self.model.config, self.shape
        )
        return replace(self, length=after, cache=cache, draft=draft)

    def append(self, tokens):
        rows, _, cache = self.rows(tokens)
        return self.commit(rows, cache, range(len(tokens)))

    def drafting(self, token):
        """Normed hidden states [4, size] and logits [4, vocab] of the drafting pass."""
        in_use = self.shape.slots_in_use(ints([self.length]))
        one = jnp.ones((1, 1, 1), bool)
        call = (ints([[token]]), ints([[self.length]]), self.draft.cache, in_use, one)
        return compute(self.model.graphdef, self.model.params, *call)[2]

    def stored(self):
        """Positions [layers, kv_heads, slots in use]."""
        return np.asarray(self.draft.positions)[:, 0, :, : min(self.length, self.shape.size)]


@cache
def prompted(name, size):
    """The prompt, committed, its draft cache chosen by the query of its last token."""
    loaded, shape = model(name), DraftCacheShape(size, SINKS, 1, None)
    dtype = jnp.dtype(jnp.float32)
    empty = shape.empty(loaded.config, 1, dtype)
    text = Text(loaded, shape, 0, empty_cache(loaded.config, 1, CAPACITY, dtype), empty)
    ids = arrays(name)["input_ids"].tolist()
    for begin, end in ((0, ROWS), (ROWS, PROMPT - 1)):
        text = replace(text, length=end, cache=text.rows(ids[begin:end])[2])
    rows, _, cache = text.rows(ids[-1:])
    draft = _rebuild(empty, cache, ints([PROMPT]), rows.query, loaded.config, shape)
    return replace(text, length=PROMPT, cache=cache, draft=draft)


def assert_same_sets(actual, expected):
    np.testing.assert_array_equal(np.sort(actual, axis=-1), np.sort(expected, axis=-1))


def test_prefill_fills_the_cache(name):
    loaded, golden = model(name), arrays(name)
    plain = autoregressive_plan(loaded.config, features_of(GREEDY)).plan
    state = prefilled_state(loaded, [golden["input_ids"].tolist()], layout_of(plain, jnp.float32, CAPACITY))
    for stack, expected in ((state.cache.keys, "kv_key_prefill"), (state.cache.values, "kv_value_prefill")):
        close(stack[:, 0, :, : PROMPT - 1], golden[expected][:, :, : PROMPT - 1])
    text = prompted(name, 48)
    close(text.cache.keys[:, 0, :, :PROMPT], golden["kv_key_prefill"])
    close(text.cache.values[:, 0, :, :PROMPT], golden["kv_value_prefill"])


def test_selection_after_the_prompt(name):
    """The same slots in the same order, holding the same keys and values; with 96 slots the whole prompt, unordered."""
    golden, text = arrays(name), prompted(name, 48)
    np.testing.assert_array_equal(text.stored(), golden["retri48_slot_pos"])
    close(text.draft.cache.keys[:, 0, :, :48], golden["retri48_key"])
    close(text.draft.cache.values[:, 0, :, :48], golden["retri48_value"])
    assert_same_sets(prompted(name, 96).stored(), golden["retri96_slot_pos"])


@pytest.mark.parametrize("size", [48, 96])
def test_drafting_pass(name, size):
    golden = arrays(name)
    normed, logits = prompted(name, size).drafting(golden["root_token"])
    close(normed, golden[f"draft{size}_hidden"])
    close(logits, golden[f"draft{size}_logits"])


def test_newest_tokens_replace_the_lowest_scored(name):
    """Positions, contents and drafting passes after each chunk, up to the one that uses the cache up."""
    golden, text, begin = arrays(name), prompted(name, 48), 0
    pure = int(np.flatnonzero(golden["upd_flag"])[0])
    assert pure == 7
    for step in range(pure):
        end = begin + int(golden["upd_chunks"][step])
        text = text.append(golden["upd_tokens"][begin:end])
        begin = end
        assert text.length == golden["upd_seq_len"][step]
        assert_same_sets(text.stored(), golden["upd_slot_pos"][step])
        close(text.drafting(golden["root_token"])[1], golden["upd_draft_logits"][step])
    # The next chunk does not fit any more: here the contract has selected, the reference will have in the next forward.
    text = text.append(golden["upd_tokens"][begin : begin + 5])
    assert text.draft.selected.tolist() == [golden["upd_seq_len"][pure]]


def test_newest_tokens_replace_the_lowest_of_a_later_selection(name):
    """From the reference's second selection, taken as it is, to the end of its trace."""
    golden, text = arrays(name), prompted(name, 96)
    second = int(np.flatnonzero(golden["upd_n_init"] == 2)[0])
    text = replace(text, shape=DraftCacheShape(48, SINKS, 1, None))
    done = int(golden["upd_seq_len"][second]) - PROMPT
    rows, _, cache = text.rows(golden["upd_tokens"][:done])
    close(rows.new.keys[:, 0, :, :done], golden["upd_kv_key"][:, :, :done])
    close(rows.new.values[:, 0, :, :done], golden["upd_kv_value"][:, :, :done])
    stored = golden["upd_slot_pos"][second]
    at = jnp.asarray(stored)[:, None, :, :, None]
    taken = FullCache(*(jnp.take_along_axis(stack, at, axis=3) for stack in (cache.keys, cache.values)))
    draft = text.shape.empty(text.model.config, 1, jnp.dtype(jnp.float32))
    draft = DraftCache(
        FullCache(
            draft.cache.keys.at[:, :, :, :48].set(taken.keys), draft.cache.values.at[:, :, :, :48].set(taken.values)
        ),
        draft.positions.at[:, 0, :, :48].set(ints(stored)),
        ints([golden["upd_prefill_len"][second]]),
    )
    text = replace(text, length=PROMPT + done, cache=cache, draft=draft)
    for step in range(second, len(golden["upd_chunks"])):
        if step > second:
            end = done + int(golden["upd_chunks"][step])
            text = text.append(golden["upd_tokens"][done:end])
            done = end
        assert text.length == golden["upd_seq_len"][step]
        assert_same_sets(text.stored(), golden["upd_slot_pos"][step])
        close(text.drafting(golden["root_token"])[1], golden["upd_draft_logits"][step])
        if step in golden["upd_keep_steps"]:
            kept = golden["upd_keep_steps"].tolist().index(step)
            by_position = np.argsort(text.stored(), axis=-1)[..., None]
            theirs = np.argsort(golden["upd_slot_pos"][step], axis=-1)[..., None]
            for stack, expected in ((text.draft.cache.keys, "upd_key"), (text.draft.cache.values, "upd_value")):
                ours = np.take_along_axis(np.asarray(stack)[:, 0, :, :48], by_position, axis=2)
                close(ours, np.take_along_axis(golden[expected][kept], theirs, axis=2))


def test_selection_by_the_query_of_the_root(name):
    golden, text = arrays(name), prompted(name, 96)
    committed = int(golden["reinit_seq_len"])
    shape = DraftCacheShape(48, SINKS, 1, None)
    _, _, cache = text.rows(golden["upd_tokens"][: committed - PROMPT])
    text = replace(text, length=committed, cache=cache)
    rows = text.rows([int(golden["ng_tree_tokens"][0])])[0]
    empty = shape.empty(text.model.config, 1, jnp.dtype(jnp.float32))
    draft = _rebuild(empty, cache, ints([committed]), rows.query, text.model.config, shape)
    assert_same_sets(np.asarray(draft.positions)[:, 0, :, :48], golden["reinit_root_slot_pos"])


@pytest.mark.parametrize("prefix", ["", "ng_"])
def test_verification_of_every_tree_node(name, prefix):
    golden = arrays(name)
    tokens, mask = golden[f"{prefix}tree_tokens"], golden["ng_attn_mask" if prefix else "tree_attn_mask"][0, 0] > 0
    depths = golden["ng_position_ids" if prefix else "tree_position_ids"]
    logits = prompted(name, 48).rows(tokens, depths, mask)[1]
    close(logits, golden[f"{prefix}tree_logits"])


def test_the_drafted_tree(name):
    """Every path of the reference's tree of 40 nodes, and no other."""
    golden, text = arrays(name), prompted(name, 48)
    shape = TreeSpec(widths=(1, 3, 3, 3), ngram_k=0, keyed_by_root=False)
    plan = Plan(text.model.config, features_of(GREEDY), CachedHeadsDrafter(text.shape), shape)
    tokens = np.zeros((1, CAPACITY), np.int32)
    tokens[0, : PROMPT + 1] = [*golden["input_ids"], golden["root_token"]]
    inputs, state = tiny.abstract_call(plan, text.model.params, GREEDY, 1, CAPACITY)
    inputs, state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (inputs, state))
    inputs = replace(inputs, params=text.model.params)
    state = replace(state, tokens=ints(tokens), length=ints([PROMPT]), cache=text.cache, drafter=(text.draft,))

    @jax.jit
    def draft(inputs, state):
        return draft_tree(nnx.merge(text.model.graphdef, inputs.params), state, (), inputs, plan, None)[0]

    tree = draft(inputs, state)
    seen, depths, drafted = (np.asarray(part)[0] for part in (tree.mask, tree.depths, tree.tokens))
    paths = {tuple(drafted[row][np.argsort(depths[row])]) for row in (np.flatnonzero(line) for line in seen)}
    assert np.asarray(tree.valid).all()
    assert paths == {tuple(path[: length + 1]) for path in golden["tree_candidates"].tolist() for length in range(5)}


def test_commit_of_a_scripted_path(name):
    golden = arrays(name)
    text, count = prompted(name, 48), int(golden["accept_n"])
    path = golden["ng_retrieve_indices"][int(golden["accept_row"])][:count]
    rows, _, cache = text.rows(golden["ng_tree_tokens"], golden["ng_position_ids"], golden["ng_attn_mask"][0, 0] > 0)
    text = text.commit(rows, cache, path)
    assert text.length == PROMPT + count
    close(text.cache.keys[:, 0, :, PROMPT : PROMPT + count], golden["accept_kv_key"])
    close(text.cache.values[:, 0, :, PROMPT : PROMPT + count], golden["accept_kv_value"])
    assert_same_sets(text.stored(), golden["accept_slot_pos"])
    token = int(golden["accept_next_token"])
    close(text.drafting(token)[1], golden["accept_draft_logits"])
    close(text.rows([token])[1][0], golden["accept_next_full_logits"])


def decode(name, speculation):
    """Tokens of a greedy run, and accepted drafts an iteration."""
    golden = arrays(name)
    expected = golden["ar_greedy_tokens"].tolist()
    steps = start(
        model(name),
        [golden["input_ids"].tolist()],
        GREEDY,
        speculation,
        max_new_tokens=len(expected),
    )
    rows = [step.rows[0].log for step in steps]
    tokens = np.concatenate([row.token_ids for row in rows]).tolist()
    offsets = np.concatenate([row.offsets for row in rows])[1:]
    begins = np.flatnonzero(offsets == 0)
    return tokens, (np.diff([*begins, len(offsets)]) - 1).tolist()


def test_greedy_run_without_drafts(name):
    assert decode(name, SpeculationConfig(mode="autoregressive"))[0] == arrays(name)["ar_greedy_tokens"].tolist()


def test_greedy_run_with_drafts_over_48_slots(name):
    """Token by token, and draft by draft until the reference selects again, by another query than ours."""
    golden = arrays(name)
    speculation = SpeculationConfig(mode="tokenswift", schedule="partial", ngram_k=0, draft_cache=48, draft_sinks=SINKS)
    tokens, accepted = decode(name, speculation)
    assert tokens == golden["ar_greedy_tokens"].tolist()
    expected = golden["e2e48_accept_len"]
    comparable = int(np.searchsorted(np.cumsum(expected + 1), 48 - SINKS, side="right"))
    assert comparable > 15
    assert accepted[:comparable] == expected[:comparable].tolist()
