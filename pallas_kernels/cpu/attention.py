"""Attention of a few tree rows over a float32 cache: every key and value is read once, by all of XLA's threads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils

from pallas_kernels.cpu import HEAD_DIM, LANES, vectors
from pallas_kernels.cpu.calls import (
    ARGUMENTS,
    CHUNKS,
    DONE,
    HANDLER,
    NEXT,
    TASK,
    add,
    argument,
    asks_for_version,
    bools,
    data,
    define,
    floats,
    free,
    intrinsic,
    ints,
    malloc,
    memcpy,
    new_work,
    register,
    release,
    result,
    share,
    size,
    symbol,
    take_part,
    threads,
    wait,
    words,
)
from pallas_kernels.cpu.dots import dot, dots

BLOCK = 512  # slots of one head in a chunk; it decides the order of the sums
_TILE = 64  # slots whose values stay in the first-level cache
_WIDTH = HEAD_DIM  # columns of the values summed at a time
# The words that describe a call: sizes, and addresses of numbers.
_ROWS, _HEADS, _GROUP, _DIM, _SCALE, _QUERIES, _KEYS, _VALUES, _OWN_KEYS, _OWN_VALUES = range(10)
_MASK, _PLACES, _OUT, _GROUPS, _MIXED, _LOGS, SHAPE = range(10, 17)
_LOWEST = np.float32(np.finfo(np.float32).min)


def _exp(builder: Any, x: Any) -> Any:
    """e ** x of numbers up to 0, within one unit in the last place, and 1.6e-38 below -87; NaN stays NaN.

    Source: Cephes, expf.
    """

    def number(value: float) -> Any:
        return vectors.splat(builder, vectors.FLOAT(value))

    least, magic = number(-87.0), number(12582912.0)  # 1.5 * 2**23: its sum with n has n in its last bits
    x = builder.select(builder.fcmp_ordered("<", x, least), least, x)
    shifted = vectors.fma(builder, x, number(1.44269504088896341), magic)
    n = builder.fsub(shifted, magic)
    x = vectors.fma(builder, n, number(-0.693359375), x)
    x = vectors.fma(builder, n, number(2.12194440e-4), x)
    y = number(1.9875691500e-4)
    for term in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0):
        y = vectors.fma(builder, y, x, number(term))
    whole = ir.VectorType(ir.IntType(32), LANES)
    bits = builder.sub(builder.bitcast(shifted, whole), builder.bitcast(magic, whole))
    bits = builder.shl(builder.add(bits, whole([127] * LANES)), whole([23] * LANES))
    return builder.fmul(y, builder.bitcast(bits, vectors.vector(LANES)))


@intrinsic
def _weigh(context: Any, scores: Any, count: Any, peak: Any):
    """Replaces `count` scores (a multiple of 16) by e ** (score - peak)."""

    def generate(own: Any, builder: Any, _: Any, given: Any) -> Any:
        scores, count, peak = given
        peak = vectors.splat(builder, peak)
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (i, _):
            at = vectors.place(builder, scores, i)
            vectors.store(builder, _exp(builder, builder.fsub(vectors.load(builder, at), peak)), at)
        return own.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32), generate


@intrinsic
def _peak(context: Any, scores: Any, count: Any):
    """The largest of `count` scores, a multiple of 16 above 0; NaN is none."""

    def generate(own: Any, builder: Any, _: Any, given: Any) -> Any:
        scores, count = given
        name, kind = "llvm.maxnum.v16f32", vectors.vector(LANES)
        larger = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 2), name)
        best = cgutils.alloca_once_value(builder, vectors.load(builder, scores))
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (i, _):
            new = vectors.load(builder, vectors.place(builder, scores, i))
            builder.store(builder.call(larger, [builder.load(best), new]), best)
        value, undefined = builder.load(best), ir.Constant(kind, ir.Undefined)
        for distance in (8, 4, 2, 1):
            order = ir.VectorType(ir.IntType(32), LANES)([(lane + distance) % LANES for lane in range(LANES)])
            value = builder.call(larger, [value, builder.shuffle_vector(value, undefined, order)])
        return vectors.first(builder, value)

    return types.float32(types.intp, types.intp), generate


@intrinsic
def _total(context: Any, weights: Any, count: Any):
    """The sum of `count` weights, a multiple of 16."""

    def generate(own: Any, builder: Any, _: Any, given: Any) -> Any:
        weights, count = given
        none = ir.Constant(vectors.vector(LANES), None)
        total = cgutils.alloca_once_value(builder, none)
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (i, _):
            new = vectors.load(builder, vectors.place(builder, weights, i))
            builder.store(builder.fadd(builder.load(total), new), total)
        return vectors.first(builder, vectors.lane_sums(builder, [builder.load(total), *[none] * 15]))

    return types.float32(types.intp, types.intp), generate


def _mix(queries: int) -> Any:
    """sums[q, :64] += weights[q, i] * values[i, :64] of some queries over `count` slots of values [count, dim].

    The sums are `stride` floats apart, the weights BLOCK.
    """

    @intrinsic
    def mix(context: Any, weights: Any, values: Any, dim: Any, count: Any, sums: Any, stride: Any):
        def generate(own: Any, builder: Any, _: Any, given: Any) -> Any:
            weights, values, dim, count, sums, stride = given
            lanes = range(0, _WIDTH, LANES)
            lines = [vectors.place(builder, sums, builder.mul(stride, stride.type(query))) for query in range(queries)]
            places = [[vectors.place(builder, line, lane) for lane in lanes] for line in lines]
            parts = [[cgutils.alloca_once_value(builder, vectors.load(builder, at)) for at in line] for line in places]
            with cgutils.for_range_slice(builder, count.type(0), count, count.type(1), count.type) as (i, _):
                line = vectors.place(builder, values, builder.mul(i, dim))
                numbers = [vectors.load(builder, vectors.place(builder, line, lane)) for lane in lanes]
                at = vectors.place(builder, weights, i)
                for query, own_parts in enumerate(parts):
                    weight = vectors.splat(builder, vectors.load(builder, vectors.place(builder, at, query * BLOCK), 1))
                    for part, number in zip(own_parts, numbers, strict=True):
                        builder.store(vectors.fma(builder, number, weight, builder.load(part)), part)
            for line, own_parts in zip(places, parts, strict=True):
                for at, part in zip(line, own_parts, strict=True):
                    vectors.store(builder, builder.load(part), at)
            return own.get_dummy_value()

        return types.void(*[types.intp] * 6), generate

    return mix


_mix_four, _mix_two, _mix_one = (_mix(queries) for queries in (4, 2, 1))


@njit
def _block(queries, count, keys, values, dim, slots, scale, scores, out):
    """One softmax of `count` queries [count, dim] over `slots` <= BLOCK slots: peaks, totals and sums into `out`,
    [count, dim + 2]."""
    padded = (slots + LANES - 1) // LANES * LANES
    whole = slots // LANES * LANES
    for slot in range(0, whole, LANES):
        for row in range(count):
            dots(queries + 4 * row * dim, keys + 4 * slot * dim, dim, scale, scores + 4 * (row * BLOCK + slot))
    for row in range(count):
        ends = floats(scores + 4 * row * BLOCK, BLOCK)
        for slot in range(whole, slots):
            ends[slot] = dot(queries + 4 * row * dim, keys + 4 * slot * dim, dim) * scale
        ends[slots:padded] = _LOWEST
        own, at = floats(out + 4 * row * (dim + 2), dim + 2), scores + 4 * row * BLOCK
        own[0] = _peak(at, padded)
        _weigh(at, padded, own[0])
        ends[slots:padded] = 0
        own[1] = _total(at, padded)
        own[2:] = 0
    for slot in range(0, slots, _TILE):
        taken = min(_TILE, slots - slot)
        for d in range(0, dim, _WIDTH):
            part, row = values + 4 * (slot * dim + d), 0
            while row < count:
                weights, sums = scores + 4 * (row * BLOCK + slot), out + 4 * (row * (dim + 2) + 2 + d)
                if row + 4 <= count:
                    _mix_four(weights, part, dim, taken, sums, dim + 2)
                    row += 4
                elif row + 2 <= count:
                    _mix_two(weights, part, dim, taken, sums, dim + 2)
                    row += 2
                else:
                    _mix_one(weights, part, dim, taken, sums, dim + 2)
                    row += 1


@njit
def _merge(query, own_keys, own_values, stride, mask, rows, dim, scale, parts, part_stride, blocks, out):
    """Merges the blocks of one query row and the tree rows that it sees; returns the logarithm of its normaliser."""
    mixed = floats(out, dim)
    mixed[:] = 0
    peak, total = _LOWEST, np.float32(0)
    for block in range(blocks):
        part = floats(parts + block * part_stride, dim + 2)
        new = max(peak, part[0])
        old, fresh = np.exp(peak - new), np.exp(part[0] - new)
        total = total * old + part[1] * fresh
        for d in range(dim):
            mixed[d] = mixed[d] * old + part[2 + d] * fresh
        peak = new
    seen = bools(mask, rows)
    for row in range(rows):
        if seen[row]:
            score = dot(query, own_keys + 4 * row * stride, dim) * scale
            new = max(peak, score)
            old, fresh = np.exp(peak - new), np.exp(score - new)
            total = total * old + fresh
            value = floats(own_values + 4 * row * stride, dim)
            for d in range(dim):
                mixed[d] = mixed[d] * old + value[d] * fresh
            peak = new
    for d in range(dim):
        mixed[d] = mixed[d] / total
    return peak + np.log(total)


@njit
def _finish(call, index):
    """Merges the blocks of the query rows of one text and KV head."""
    shape = words(call, SHAPE)
    rows, heads, group, dim = shape[_ROWS], shape[_HEADS], shape[_GROUP], shape[_DIM]
    scale = floats(shape[_SCALE], 1)[0]
    _, first, blocks = words(shape[_GROUPS] + 24 * index, 3)
    count, text, head = rows * group, index // heads, index % heads
    logs = floats(shape[_LOGS], (text + 1) * count * heads)
    part_stride = 4 * count * (dim + 2)
    own = 4 * (text * rows * heads + head) * dim
    for g in range(group):
        for r in range(rows):
            query = g * rows + r
            target = ((text * rows + r) * heads + head) * group + g
            logs[target] = _merge(
                shape[_QUERIES] + 4 * (index * count + query) * dim,
                shape[_OWN_KEYS] + own,
                shape[_OWN_VALUES] + own,
                heads * dim,
                shape[_MASK] + (text * rows + r) * rows,
                rows,
                dim,
                scale,
                shape[_OUT] + first * part_stride + 4 * query * (dim + 2),
                part_stride,
                blocks,
                shape[_MIXED] + 4 * target * dim,
            )


@cfunc(TASK, cache=True)
def _task(work):
    # A thread may come here when all is done and everything but the piece of work is freed.
    chunks, call = words(work, ARGUMENTS)[CHUNKS], work + 8 * ARGUMENTS
    shape = words(call, SHAPE)
    count, dim = shape[_ROWS] * shape[_GROUP], shape[_DIM]
    scores = 0
    while True:
        chunk = add(work + 8 * NEXT, 1)
        if chunk >= chunks:
            break
        if scores == 0:
            scores = malloc(4 * BLOCK * count)
        head, place, slots = words(shape[_PLACES] + 24 * chunk, 3)
        own = shape[_OUT] + 4 * chunk * count * (dim + 2)
        queries, scale = shape[_QUERIES] + 4 * head * count * dim, floats(shape[_SCALE], 1)[0]
        keys, values = shape[_KEYS] + 4 * place, shape[_VALUES] + 4 * place
        _block(queries, count, keys, values, dim, slots, scale, scores, own)
        if add(shape[_GROUPS] + 24 * head, -1) == 1:  # this was the last of the head's blocks
            _finish(call, head)
        add(work + 8 * DONE, 1)
    if scores != 0:
        free(scores)
    release(work)


define("tokenswift_attention", _task)
_task_address = symbol("tokenswift_attention")


@cfunc(HANDLER, cache=True)
def _attention(frame):
    if asks_for_version(frame):
        return 0
    queries, cached = argument(frame, 0), argument(frame, 1)
    batch, rows, query_heads, dim = size(queries, 0), size(queries, 1), size(queries, 2), size(queries, 3)
    heads, capacity = size(cached, 2), size(cached, 3)
    layer, lengths = ints(data(argument(frame, 5)), 1)[0], ints(data(argument(frame, 6)), batch)
    group = query_heads // heads
    count = group * rows
    blocks = 0
    for row in range(batch):
        blocks += (max(lengths[row], 0) + BLOCK - 1) // BLOCK
    # Queries by KV head [batch, heads, group, rows, dim]; the head, place and size of every chunk; the chunks' sums; of
    # every head, the blocks that are not done, the first chunk and the number of blocks.
    by_head = malloc(4 * batch * heads * count * dim)
    places = malloc(24 * max(blocks * heads, 1))
    out = malloc(4 * max(blocks * heads, 1) * count * (dim + 2))
    groups = malloc(24 * batch * heads)
    work = new_work(blocks * heads, SHAPE)
    call = work + 8 * ARGUMENTS
    shape = words(call, SHAPE)
    shape[_ROWS], shape[_HEADS], shape[_GROUP], shape[_DIM] = rows, heads, group, dim
    shape[_QUERIES], shape[_OUT], shape[_GROUPS], shape[_PLACES] = by_head, out, groups, places
    shape[_KEYS], shape[_VALUES], shape[_MASK] = data(cached), data(argument(frame, 2)), data(argument(frame, 7))
    shape[_OWN_KEYS], shape[_OWN_VALUES] = data(argument(frame, 3)), data(argument(frame, 4))
    shape[_SCALE], shape[_MIXED], shape[_LOGS] = (
        data(argument(frame, 8)),
        data(result(frame, 0)),
        data(result(frame, 1)),
    )
    for row in range(batch):
        for r in range(rows):
            for q in range(query_heads):
                target = (row * heads + q // group) * count + q % group * rows + r
                source = (row * rows + r) * query_heads + q
                memcpy(by_head + 4 * dim * target, data(queries) + 4 * dim * source, 4 * dim)
    chunk = 0
    for row in range(batch):
        length = max(lengths[row], 0)
        own_blocks = (length + BLOCK - 1) // BLOCK
        for head in range(heads):
            index = row * heads + head
            own = words(groups + 24 * index, 3)
            own[0], own[1], own[2] = own_blocks, chunk, own_blocks
            if own_blocks == 0:
                _finish(call, index)
            base = ((layer * batch + row) * heads + head) * capacity
            for slot in range(0, length, BLOCK):
                place = words(places + 24 * chunk, 3)
                place[0], place[1], place[2] = index, (base + slot) * dim, min(BLOCK, length - slot)
                chunk += 1
    if chunk:
        share(frame, work, _task_address(), min(threads(frame), chunk) - 1)
        take_part(work, _task_address())
        wait(work)
    release(work)
    free(by_head)
    free(places)
    free(out)
    free(groups)
    return 0


register("tokenswift_attention", _attention)


def tree_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    own_keys: jax.Array,
    own_values: jax.Array,
    *,
    layer: int | jax.Array,
    lengths: jax.Array,
    tree_mask: jax.Array,
    scale: float,
    return_lse: bool = False,
    **_: Any,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`reference.tree_attention` in float32 without a sliding window, where `cpu.serves` it."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (queries.shape, queries.shape[:3])]
    call = jax.ffi.ffi_call("tokenswift_attention", shapes, vmap_method="sequential")
    cached = (queries, keys, values, own_keys, own_values, jnp.asarray(layer, jnp.int32), lengths, tree_mask)
    mixed, lse = call(*cached, jnp.asarray(scale, jnp.float32))
    return (mixed, lse) if return_lse else mixed
