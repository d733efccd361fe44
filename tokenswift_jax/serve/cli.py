"""The command `serve`: its flags, and the service that they describe."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenswift_jax.cli import streams
from tokenswift_jax.cli.command import Parser, exit_status, quiet_transformers, with_dashes
from tokenswift_jax.cli.converters import json_object, name, path, whole, whole_list
from tokenswift_jax.errors import UserError
from tokenswift_jax.modes import MODES, check_used
from tokenswift_jax.paths import expanded, state_folder
from tokenswift_jax.progress_report import Report, silent
from tokenswift_jax.serve.extra import check_installed
from tokenswift_jax.serve.server_mesh import check_stages, mesh_lines, server_mesh, server_table
from tokenswift_jax.speculation import SpeculationConfig
from tokenswift_jax.text.reading import NotTextError, decode

if TYPE_CHECKING:
    from tokenswift_jax.cli.phases import Phases
    from tokenswift_jax.cli.progress import ProgressLine
    from tokenswift_jax.model import Model
    from tokenswift_jax.serve.pool import Pool
    from tokenswift_jax.serve.prefix_store import PrefixStore
    from tokenswift_jax.serve.service import Service

PROGRAM = "python -m tokenswift_jax.serve"
KEY_VARIABLE = "TOKENSWIFT_API_KEY"
_MAX_LENGTH, _SHORT_LENGTH, _SHORT_SLOTS = 8192, 2048, 2
# Each group of slots has programs of its own width. A single text decodes in the first group at the cost of one row.
_SLOTS, _MORE_BYTES = (1, 3), 2**30
# Four texts of four tree rows are the most that a CPU's own kernels (`pallas_kernels.cpu`) multiply.
_MORE_SLOTS, _MORE_SLOTS_OF_A_CPU = (1, 8), (1, 4)
_PREFIX_BYTES = 8 * 2**30
_DEMO_NAME = "tokenswift-demo"
# The demo continues stories; a conversation is its text, turn by turn.
_DEMO_TEMPLATE = "{{ messages | map(attribute='content') | join('\\n\\n') }}"


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Runs the command until a signal ends it; returns its exit status (0, 1 the engine stopped, 2 bad input)."""
    parser = _parser(program)
    words = with_dashes(sys.argv[1:] if argv is None else argv, parser)
    return exit_status(lambda: _run(parser.parse_args(words)), flags=parser.flags, interrupted="stopped")


def _run(options: argparse.Namespace) -> int:
    keys = _keys(options)
    _check_host(options.host, keys)
    check_installed()
    speculation = _speculation(options)
    mesh = server_mesh(options.mesh, sum(options.slots or _SLOTS), options.max_length or _MAX_LENGTH)
    quiet_transformers()
    from tokenswift_jax.cli.phases import Phases
    from tokenswift_jax.cli.progress import ProgressLine
    from tokenswift_jax.model import load
    from tokenswift_jax.serve.app import create_app
    from tokenswift_jax.serve.security import LOOPBACK
    from tokenswift_jax.serve.server import Server, listening

    line = ProgressLine(sys.stderr, total=0)
    showing = Phases(line, sys.stderr, enabled=True, alone=True)
    with showing as phases, listening(options.host, options.port) as listener:
        announcer = _Announcer(line, phases)
        placed = {"mesh": mesh, "length": options.max_length}
        model = load(options.model, options.dtype, options.rope_override, report=announcer.report, **placed)
        service = _service(options, _with_template(model, options.model), speculation, announcer.report)
        for text in _mesh_texts(options, service):
            announcer.say(text)
        hosts = [*LOOPBACK, options.host, *(options.allowed_host or ())]
        # Beyond loopback the names are the network's, and the key protects the server.
        strict = _is_loopback(options.host) or options.allowed_host
        app = create_app(service, keys=keys, hosts=hosts if strict else None)
        Server(app, service, listener, announcer.say).run([listener])
    return 0 if service.scheduler.error is None else 1


def _speculation(options: argparse.Namespace) -> SpeculationConfig:
    given = {"mode": options.mode, "node_budget": options.node_budget, "ngram_k": options.ngram_k}
    given = {name: value for name, value in given.items() if value is not None}
    check_used(given, options.mode or "auto")
    return SpeculationConfig(**given)


def _service(options: argparse.Namespace, model: Model, speculation: SpeculationConfig, report: Report) -> Service:
    from tokenswift_jax.serve.metrics import Metrics
    from tokenswift_jax.serve.service import Service

    served = options.served_model_name or _served_name(options.model)
    state = options.state_dir if options.state_dir is not None else state_folder()
    return Service(
        model,
        make_pools(
            model, speculation, options.max_length, options.slots, options.short_slots, options.prefix_memory, report
        ),
        name=served,
        state_dir=state,
        max_queue=options.max_queue,
        metrics=Metrics(served, options.metrics_prefix),
    )


def _mesh_texts(options: argparse.Namespace, service: Service) -> list[str]:
    """For a person: where the arrays are, on a mesh; with the flag also the whole table."""
    model, pools = service.model, service.scheduler.pools
    lines = mesh_lines(model, pools, [*(options.slots or ()), options.short_slots])
    return [*lines, server_table(model, pools)] if options.mesh_report else lines


def make_pools(
    model: Model,
    speculation: SpeculationConfig,
    max_length: int | None = None,
    slots: Sequence[int] | None = None,
    short_slots: int = _SHORT_SLOTS,
    prefix_memory: int | None = None,
    report: Report = silent,
) -> list[Pool]:
    """The groups of slots for texts of up to `max_length` tokens, and `short_slots` more for short ones alone.

    By default the groups have 1 and 3 slots, or 1 and 8 (a CPU: 1 and 4) where the K/V of these take at most 1 GiB on
    each device. A mesh with a data axis rounds every number up, so that its groups of devices share the slots evenly.
    A server of texts not much longer than short ones has no slots for these alone. `prefix_memory` is the most MiB of
    the host's memory for the K/V of earlier texts; None: a quarter of what the slots leave free, at most 8192.

    Raises:
      UserError: the length exceeds the model's positions, or the slots the memory; the mesh has stages.
    """
    import jax

    from tokenswift_jax.engine.placement import Placement
    from tokenswift_jax.parallel.device_memory import cache_bytes_on_each
    from tokenswift_jax.parallel.mesh import spec_of
    from tokenswift_jax.serve.plan_set import PlanSet
    from tokenswift_jax.serve.pool import Pool, PoolSize

    if slots is not None and not all(slots):
        raise UserError("slots has a group of 0; give at least 1 for each", ("slots",))
    check_stages(spec_of(model.mesh))
    limit = model.config.max_position_embeddings
    length = min(_MAX_LENGTH, limit) if max_length is None else max_length
    if length > limit:
        raise UserError(f"max_length {length} exceeds the model's {limit} positions; ask for less", ("max_length",))
    if slots is None:
        dtype = jax.numpy.dtype(model.dtype)
        more = _MORE_SLOTS_OF_A_CPU if jax.default_backend() == "cpu" else _MORE_SLOTS
        most = cache_bytes_on_each(model.mesh, model.config, sum(more), length, dtype)
        slots = more if most <= _MORE_BYTES else _SLOTS
    rows = Placement(model.mesh).rows
    sizes = [PoolSize(rows(count), length) for count in slots]
    if short_slots and length >= 2 * _SHORT_LENGTH:
        sizes.append(PoolSize(rows(short_slots), _SHORT_LENGTH))
    plans, pools = PlanSet(model.config, speculation), list[Pool]()
    for size in sizes:
        beside = sum(pool.bytes for pool in pools)
        pools.append(Pool(model, size, plans, reserved=beside, report=report))
    prefixes = _prefix_store(model, prefix_memory, pools)
    for pool in pools:
        pool.prefixes = prefixes
    return pools


def _prefix_store(model: Model, memory: int | None, pools: Sequence[Pool]) -> PrefixStore | None:
    import jax

    from tokenswift_jax.engine.host_memory import available_bytes
    from tokenswift_jax.kv.dense import BLOCK, cache_bytes
    from tokenswift_jax.serve.prefix_store import PrefixStore

    part = cache_bytes(model.config, 1, BLOCK, jax.numpy.dtype(model.dtype))
    free = available_bytes()
    if free is not None and jax.default_backend() == "cpu":  # the slots, not yet allocated, are in the same memory
        devices = 1 if model.mesh is None else model.mesh.size
        free = max(free - devices * sum(pool.bytes for pool in pools), 0)
    most = _PREFIX_BYTES if free is None else min(_PREFIX_BYTES, free // 4)
    budget = most if memory is None else memory * 2**20
    return PrefixStore(budget, part) if budget >= part else None


def _served_name(asked: str | None) -> str:
    """The model's name in requests: a hub id as it is, a folder or a file by its own name."""
    if asked is None:
        return _DEMO_NAME
    place = expanded(asked)
    return asked if not place.exists() else place.resolve().stem if place.is_file() else place.resolve().name


class _Announcer:
    """The messages of a server to a person; it goes on where they cannot be written."""

    def __init__(self, line: ProgressLine, phases: Phases) -> None:
        """Lines go to stdout, phases that take long to `phases`, which shows them on `line`."""
        self._line, self._phases = line, phases

    def say(self, text: str) -> None:
        """Prints a line."""
        with contextlib.suppress(OSError):
            self._line.clear()
        streams.say(text)

    def report(self, phase: str, done: int, total: int, unit: str) -> None:
        """Takes one report (`progress_report.Report`); the beginning of a compilation is a line too."""
        if not done and phase.startswith("compiling"):
            self.say(phase)
        with contextlib.suppress(OSError):
            self._phases(phase, done, total, unit)


def _with_template(model: Model, asked: str | None) -> Model:
    """The model; the bundled demo gets a chat template, which its files lack."""
    if asked is None and model.tokenizer is not None and not model.tokenizer.chat_template:
        model.tokenizer.chat_template = _DEMO_TEMPLATE
    return model


def _keys(options: argparse.Namespace) -> list[str]:
    keys: list[str] = list(options.api_key or ())
    if os.environ.get(KEY_VARIABLE):
        keys.append(os.environ[KEY_VARIABLE])
    if options.api_key_file is not None:
        try:
            lines = decode(options.api_key_file.read_bytes()).splitlines()
        except (OSError, NotTextError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(f"api_key_file {options.api_key_file}: {reason}", ("api_key_file",)) from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise UserError(f"api_key_file {options.api_key_file} has no keys; write one a line", ("api_key_file",))
        keys += found
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise UserError("an API key has characters that no header holds; use ASCII letters, digits and signs")
    return keys


def _check_host(host: str, keys: Sequence[str]) -> None:
    if not keys and not _is_loopback(host):
        raise UserError(
            f"host {host} is not loopback, and there is no key: anyone on the network could use this server; give "
            f"api_key, or set {KEY_VARIABLE}",
            ("host", "api_key"),
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parser(program: str) -> Parser:
    parser = Parser(prog=program, allow_abbrev=False, description="Serves a checkpoint behind OpenAI's interface.")
    add = parser.add_argument
    add("--model", type=name, metavar="DIR", help="checkpoint: a folder, a GGUF file or a hub id (default: the demo)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's own, float32 on CPU")
    add("--rope-override", type=json_object, metavar="JSON", help="fields that replace those of the checkpoint's RoPE")
    add("--served-model-name", type=name, metavar="NAME", help="the model's name in requests")
    add("--host", type=name, default="127.0.0.1", help="address to listen on; beyond loopback needs a key")
    add("--port", type=whole(0), default=8000, help="0: any free one")
    add("--api-key", action="append", type=name, metavar="KEY", help=f"accept this key alone; also ${KEY_VARIABLE}")
    add("--api-key-file", type=path, metavar="FILE", help="accept the keys of a file, one a line")
    add(
        "--allowed-host",
        action="append",
        type=name,
        metavar="NAME",
        help="another name by which clients call the server",
    )
    add("--state-dir", type=path, metavar="FOLDER", help="for runs that outlive the server (default: XDG_STATE_HOME's)")
    add("--max-length", type=whole(2), metavar="N", help=f"longest text, prompt included (default: {_MAX_LENGTH})")
    add(
        "--slots",
        type=whole_list("1,3"),
        help="texts at once, by groups that decode in turns (small models: 1,8, on a CPU 1,4; else 1,3)",
    )
    add(
        "--short-slots", type=whole(0), default=_SHORT_SLOTS, help=f"more, for texts up to {_SHORT_LENGTH} tokens alone"
    )
    add(
        "--prefix-memory",
        type=whole(0),
        metavar="MIB",
        help="host memory for the K/V of earlier texts; 0: none (default: a quarter of the free memory, at most 8192)",
    )
    add("--max-queue", type=whole(1), default=64, metavar="N", help="waiting requests before the answer is 429")
    add("--mode", choices=MODES, help="how to draft; no text depends on it (default: auto)")
    add("--node-budget", type=whole(1), metavar="N", help="drafted tokens verified per iteration")
    add("--ngram-k", type=whole(0), metavar="N", help="n-gram chains per key; 0 switches them off")
    add(
        "--mesh",
        default="1",
        metavar="data=2,model=4,context=2|N|auto",
        help="devices: groups for slots, devices that share a model, and that share the texts' caches (default: 1)",
    )
    add("--mesh-report", action="store_true", help="print every array's split and bytes on each device")
    add("--metrics-prefix", choices=("tokenswift", "vllm"), default="tokenswift", help="before the names of metrics")
    return parser
