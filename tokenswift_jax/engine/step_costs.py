"""The costs of plans, kept on disk: what an iteration of each takes, and how long its program takes to get ready.

An iteration's cost is a *price*, the number of plain steps that take as long. A machine that another program slows down
slows both, so a price keeps far better than seconds do.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any

import jax

from pallas_kernels import cpu
from tokenswift_jax import __version__
from tokenswift_jax.errors import UserError
from tokenswift_jax.hardware.environment import usable_cores
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.paths import cache_folder
from tokenswift_jax.speculate.plans import NamedPlan

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

_FORMAT = 1
# The newest values that are kept. Of five, the second smallest counts, of fewer the smallest: other programs disturb
# measurements upwards, and a price that is too high is never corrected, since its plan does not run. (On two cores with
# a load of 8, prices of 1.3 to 1.8 were measured as 1.9 to 5.)
_KEPT = 5
# A value outside these bounds measures a clock or another program, not a step: an iteration of several tree rows does
# all the work of a plain step, and to run rows one by one would cost more than any way to run them together.
_LEAST_PRICE, _MOST_PRICE_A_ROW = 0.8, 3.0

# After so many iterations, a text's acceptance is worth keeping: the mean of tokens per iteration errs by about 10%.
_ENOUGH = 16

_saver = ThreadPoolExecutor(1, "tokenswift-costs")
_savings: set[Future[None]] = set()  # not yet on disk

_Values = dict[str, list[list[float]]]  # per length bucket: [length, value], the newest last


@dataclass
class StepCosts:
    """Costs of one model on one device, in memory and, if `path` is given, on disk.

    A length bucket is a power of two of committed positions: within one, an iteration's cost, which is affine in the
    length, changes by less than the cost of reading the cache once.

    Attributes:
      path: the file; None: the costs are not kept.
      prices: per plan, plain steps of an iteration by length bucket.
      seconds: seconds of a plain step by length bucket, by the features of plain decoding.
      accepted: per plan, the tokens an iteration of the newest texts.
      ready: per program, the most seconds that it took to get ready (its compilation) and the newest.
      missed: per program, the seconds that texts would have gained by it, which had no time to wait for it.
    """

    path: Path | None = None
    prices: dict[str, _Values] = field(default_factory=dict)
    seconds: dict[str, _Values] = field(default_factory=dict)
    accepted: dict[str, list[float]] = field(default_factory=dict)
    ready: dict[str, list[float]] = field(default_factory=dict)
    missed: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._new: list[tuple[Any, ...]] = []
        self._labels: dict[NamedPlan, str] = {}
        self._read()

    # Prices

    def price(self, named: NamedPlan, length: int) -> float | None:
        """Plain steps that an iteration costs at a length, interpolated between buckets; None: never measured."""
        return _at(self.prices.get(self._label(named), {}), length)

    def plain_seconds(self, plain: NamedPlan, length: int) -> float | None:
        """Seconds of a plain step at a length, as on earlier runs; None: never measured."""
        return _at(self.seconds.get(self._label(plain), {}), length)

    def tokens_an_iteration(self, named: NamedPlan) -> float | None:
        """The lower median of the newest texts; None: the plan never ran."""
        found = self.accepted.get(self._label(named))
        return median_low(found) if found else None

    def measured(self, named: NamedPlan, length: int) -> int:
        """The number of kept prices from the length's own bucket and from those beside it."""
        found = self.prices.get(self._label(named), {})
        return sum(len(found.get(str(_bucket(length) + step), ())) for step in (-1, 0, 1))

    def is_certain(self, named: NamedPlan, length: int) -> bool:
        """Whether another measurement would tell nothing new."""
        return self.measured(named, length) >= _KEPT

    def ready_seconds(self, named: NamedPlan, capacity: int) -> float | None:
        """Seconds that a program is expected to take until it may run; if it never did at this capacity, as at others.

        That is its compilation, or, if the compilation cache may have it, its newest time. None: never compiled.
        """
        label, own = self._label(named), self.ready.get(self._program(named, capacity))
        if own is not None:
            return own[-1] if _compiled_programs_stay() else own[0]
        others = [seconds[0] for program, seconds in self.ready.items() if program.rpartition(" @")[0] == label]
        others = others or [seconds[0] for seconds in self.ready.values()]
        return median_low(others) if others else None

    def was_compiled(self, named: NamedPlan, capacity: int) -> bool:
        """Whether the compilation cache on disk may have a program."""
        return _compiled_programs_stay() and self._program(named, capacity) in self.ready

    def missed_seconds(self, named: NamedPlan, capacity: int) -> float:
        """Seconds that earlier texts would have gained by a program that none of them compiled."""
        return self.missed.get(self._program(named, capacity), [0.0])[0]

    # Measurements

    def add_price(self, named: NamedPlan, length: int, price: float) -> None:
        """Records a measured price, unless it is implausible."""
        if _LEAST_PRICE <= price <= _MOST_PRICE_A_ROW * named.plan.rows:
            self._add("prices", self._label(named), _bucket(length), price, length)

    def add_plain_seconds(self, plain: NamedPlan, length: int, seconds: float) -> None:
        """Records the measured time of a plain step."""
        if seconds > 0:
            self._add("seconds", self._label(plain), _bucket(length), seconds, length)

    def add_accepted(self, named: NamedPlan, tokens: float) -> None:
        """Records a text's tokens an iteration."""
        self._add("accepted", self._label(named), None, tokens)

    def add_text(self, named: NamedPlan, tokens: int, iterations: int) -> None:
        """Records a text's tokens an iteration of a plan with drafts, if it had enough iterations of it."""
        if iterations >= _ENOUGH and named.plan.drafter.parts:
            self.add_accepted(named, tokens / iterations)

    def add_ready(self, named: NamedPlan, capacity: int, seconds: float) -> None:
        """Records how long a program took to get ready."""
        self._add("ready", self._program(named, capacity), None, seconds)

    def add_missed(self, named: NamedPlan, capacity: int, seconds: float) -> None:
        """Records what a text would have gained by a program."""
        self._add("missed", self._program(named, capacity), None, seconds)

    def save(self) -> None:
        """Adds what is new to the file, which other processes may have changed; keeps quiet about a full disk."""
        if self.path is None or not self._new:
            return
        new, self._new = self._new, []
        merged = StepCosts(self.path)
        for kind, label, bucket, value, *length in new:
            merged._add(kind, label, bucket, value, *length)
        text = json.dumps({"format": _FORMAT, **{kind: getattr(merged, kind) for kind in _KINDS}})
        own = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            own.write_text(text, encoding="utf-8")
            own.replace(self.path)
        with contextlib.suppress(OSError):
            own.unlink(missing_ok=True)

    def save_later(self) -> None:
        """As `save`, in another thread: the file takes a millisecond or two, in which a small model writes some tokens.
        The process ends only when it is written."""
        try:
            saving = _saver.submit(self.save)
        except RuntimeError:  # the interpreter is about to end and starts no thread
            self.save()
            return
        _savings.add(saving)
        saving.add_done_callback(_savings.discard)

    def _program(self, named: NamedPlan, capacity: int) -> str:
        """The name of a plan's program for slots of a capacity."""
        return f"{self._label(named)} @{capacity}"

    def _label(self, named: NamedPlan) -> str:
        found = self._labels.get(named)
        if found is None:
            found = self._labels[named] = label_of(named)
        return found

    def _add(self, kind: str, label: str, bucket: int | None, value: float, *length: float) -> None:
        self._new.append((kind, label, bucket, value, *length))
        values = getattr(self, kind)
        if kind == "ready":
            values[label] = [max([value, *values.get(label, [])[:1]]), value]
        elif kind == "missed":
            values[label] = [round(values.get(label, [0.0])[0] + value, 4)]
        elif bucket is None:
            values[label] = [*values.get(label, []), round(value, 4)][-_KEPT:]
        else:
            entry = values.setdefault(label, {})
            kept = [*entry.get(str(bucket), []), [int(length[0]), round(value, 6)]]
            entry[str(bucket)] = kept[-_KEPT:]

    def _read(self) -> None:
        if self.path is None:
            return
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["format"] != _FORMAT:
                return
            checked = {kind: _CHECKS[kind](found.get(kind, {})) for kind in _KINDS}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # no file yet, or a damaged one: `save` writes a new one
        for kind, values in checked.items():
            setattr(self, kind, values)


_KINDS = ("prices", "seconds", "accepted", "ready", "missed")


def _by_bucket(found: Any) -> dict[str, _Values]:
    return {
        str(label): {
            str(int(bucket)): [[int(length), _positive(value)] for length, value in values][-_KEPT:]
            for bucket, values in buckets.items()
            if values
        }
        for label, buckets in found.items()
    }


def _flat(found: Any) -> dict[str, list[float]]:
    return {str(label): [_positive(value) for value in values][-_KEPT:] for label, values in found.items()}


_CHECKS = {"prices": _by_bucket, "seconds": _by_bucket, "accepted": _flat, "ready": _flat, "missed": _flat}


def _positive(value: Any) -> float:
    if not 0 < float(value) < float("inf"):
        raise ValueError(value)
    return float(value)


def file_name(config: ModelConfig, params: Any, batch: int, cache_dtype: str | None = None) -> str:
    """The name of the file for the costs of a model on this machine.

    `cache_dtype` is the number format of the full cache, as for `kv.dense.empty_cache`.
    """
    leaves, structure = jax.tree.flatten(params)
    shapes = [(leaf.shape, str(leaf.dtype), _placed(leaf)) for leaf in leaves]
    model = _digest(config, str(structure), shapes, cache_dtype)
    device = jax.devices()[0]
    cores = (usable_cores(), _processor()) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = _digest(device.platform, device.device_kind, cores if device.platform == "cpu" else None)
    versions = _digest(jax.__version__, __version__, os.environ.get("XLA_FLAGS", ""), cpu.installed())
    return f"{device.platform}-{machine}-{model}-{versions}-batch{batch}.json"


def costs_of(model: Model, slots: int, cache_dtype: str | None = None) -> StepCosts:
    """The costs of a model in sessions of so many slots, as earlier ones left them; `cache_dtype` as in `file_name`."""
    place = "costs", slots, cache_dtype
    return costs_in(model.once(place, lambda: file_name(model.config, model.params, slots, cache_dtype)))


def costs_in(name: str) -> StepCosts:
    """The costs in the file of a name (`file_name`); without a home folder, costs that are not kept."""
    try:
        folder = cache_folder("costs")
    except UserError:
        return StepCosts()
    for saving in list(_savings):
        saving.result()
    return StepCosts(folder / name)


def _placed(leaf: jax.Array) -> Any:
    """The part of the key that a parameter's place gives: its number of devices, and on a mesh how it is split."""
    mesh = getattr(leaf.sharding, "mesh", None)
    number = len(leaf.sharding.device_set)
    return number if mesh is None else (dict(mesh.shape), str(leaf.sharding.spec))  # pyright: ignore[reportAttributeAccessIssue]


def label_of(named: NamedPlan) -> str:
    """The name of a plan in the file: for a person, and a digest of everything that its program depends on."""
    plan = named.plan
    drafter = (plan.drafter, plan.tree, plan.shared_noise, str(plan.draft_graph), plan.logprobs)
    return f"{named.label}, {plan.features.name.lower()} {_digest(*drafter)}"


def _at(values: _Values, length: int) -> float | None:
    """The value at a length: linear between the buckets, constant beyond the outermost."""
    points = sorted(
        (sum(at for at, _ in kept) / len(kept), sorted(value for _, value in kept)[len(kept) // _KEPT])
        for kept in values.values()
    )
    if not points:
        return None
    for (low, first), (high, second) in itertools.pairwise(points):
        if low <= length <= high:
            return first + (second - first) * (length - low) / max(high - low, 1)
    return points[0][1] if length < points[0][0] else points[-1][1]


def _bucket(length: int) -> int:
    return max(length, 1).bit_length()


def _digest(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line
    return platform.processor()


def _compiled_programs_stay() -> bool:
    settings: Any = jax.config
    return bool(settings.jax_compilation_cache_dir and settings.jax_enable_compilation_cache)
