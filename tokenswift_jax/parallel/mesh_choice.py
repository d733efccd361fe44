"""The mesh `auto`: chosen from the devices, the model, the length and the rows, by the bytes that a step reads."""

from __future__ import annotations

from itertools import product

import jax

from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.fit import fit
from tokenswift_jax.parallel.mesh_spec import AutoMesh, MeshSpec
from tokenswift_jax.parallel.step_time import Collective, mesh_rates_of, step_time

_ROOM = 0.85  # share of a device's memory that weights and cache may take


def chosen_mesh(config: ModelConfig, itemsize: int, asked: AutoMesh) -> tuple[MeshSpec, tuple[str, ...]]:
    """The mesh of the least expected time for a step whose arrays fit the memory, and a line that says why.

    In several processes, a mesh that they can share evenly.

    Args:
      config: the checkpoint's.
      itemsize: bytes of a weight.
      asked: the rows and the length to expect.
    """
    devices, processes = jax.local_devices(), jax.process_count()
    platform, kind, count = devices[0].platform, devices[0].device_kind, jax.device_count()
    if count == 1:
        return MeshSpec(), (f"mesh auto: 1, since there is one device ({kind})",)
    if platform == "cpu" and processes > 1:
        spec = MeshSpec(model=processes)
        return spec, (f"mesh auto: {spec}, a device of each process, since all of them have to take part",)
    if platform == "cpu":
        return MeshSpec(), (f"mesh auto: 1, since the {count} virtual devices share one CPU and its memory",)
    rates = mesh_rates_of(kind, platform)
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")

    def judged(spec: MeshSpec) -> tuple:
        rows, fitted = -(-asked.rows // spec.data), fit(config, spec.model, spec.context)
        # Heads that several devices store, and the zeros that fill up sizes, take memory and are read as well.
        whole = config if fitted is None else fitted.config
        tables, attention, inner = _weight_bytes(whole, itemsize)
        row = _row_bytes(whole, itemsize, asked.length)
        shared = spec.model * spec.context
        of_layers = attention / spec.model + (inner + rows * row) / shared
        of_stage = of_layers * -(-config.num_layers // spec.stage) / config.num_layers
        stored = tables / shared + of_stage
        fits = memory is None or stored <= _ROOM * memory
        read = tables / shared + of_stage * spec.stage  # one stage after the other
        seconds = step_time(rates, read, plain_collectives(config, itemsize, spec)).total
        # Of meshes that are equally fast, the one with the fewest devices.
        return not fits, seconds, spec.devices, spec.data, spec.model, spec.context, spec.stage, stored

    def shapes(stages: int = 1) -> list[MeshSpec]:
        even = count - count % processes
        return [spec for spec in _shapes(even, min(even, stages)) if spec.devices % processes == 0]

    found = min(map(judged, shapes()))
    if found[0] and asked.stages:  # stages make no step faster: they are for models that fit no other mesh
        found = min(found, *map(judged, shapes(config.num_layers)))
    misfit, seconds, _, *sizes, stored = found
    spec = MeshSpec(*sizes)
    length = config.max_position_embeddings if asked.length is None else asked.length
    reason = (
        f"mesh auto: {spec} of {count} x {kind}, for {asked.rows} rows of {length} positions: {stored / 1e9:.1f} GB "
        f"a device, {1e3 * seconds:.2f} ms a step by memory and sums"
    )
    return spec, (reason + (", more than a device has" if misfit else ""),)


def plain_collectives(config: ModelConfig, itemsize: int, spec: MeshSpec) -> list[Collective]:
    """The collectives of a plain step of one text: those of attention, of the MLPs and the embeddings, of the draw,
    the results that the devices along `context` merge, and those of each stage.

    `tests/parallel/test_collectives.py` counts them in compiled programs.
    """
    layers, row = config.num_layers, itemsize * config.hidden_size
    shared, merged = spec.model * spec.context, 4 * config.num_heads * (config.head_dim + 1)
    found = [
        Collective("all-reduce", row, spec.model, layers),
        Collective("all-reduce", row, shared, layers + 1),
        Collective("all-gather", 8 * shared, shared, 1),
        Collective("all-gather", spec.context * merged // spec.model, spec.context, layers),
        Collective("all-gather", spec.stage * row, spec.stage, spec.stage + 1),
    ]
    return [each for each in found if each.devices > 1]


def _shapes(count: int, stages: int = 1) -> list[MeshSpec]:
    """All meshes of at most `count` devices in powers of two, and those of all devices along one axis; with at most so
    many stages."""
    sizes = [2**power for power in range(count.bit_length()) if 2**power <= count]
    meshes = [MeshSpec(*each) for each in product(sizes, sizes, sizes, [size for size in sizes if size <= stages])]
    alone = [MeshSpec(data=count), MeshSpec(model=count), MeshSpec(context=count), MeshSpec(stage=stages)]
    return [spec for spec in meshes if spec.devices <= count] + alone


def _weight_bytes(config: ModelConfig, itemsize: int) -> tuple[int, int, int]:
    """Bytes of the embeddings and the LM head, of the layers' attention, and of their MLPs."""
    size, inner = config.hidden_size, config.intermediate_size
    attention = 2 * size * config.head_dim * (config.num_heads + config.num_kv_heads)
    tables = config.padded_vocab * size * (1 if config.tie_word_embeddings else 2)
    return itemsize * tables, itemsize * config.num_layers * attention, itemsize * config.num_layers * 3 * size * inner


def _row_bytes(config: ModelConfig, itemsize: int, length: int | None) -> int:
    positions = config.max_position_embeddings if length is None else length
    return 2 * itemsize * config.num_layers * config.num_kv_heads * config.head_dim * positions
