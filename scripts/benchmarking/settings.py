"""The benchmark's flags, and the models, prompts and sizes that they ask for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

import tokenswift_jax as ts
from benchmarking.llama_cpp import LlamaModel
from benchmarking.rows import TRANSFORMERS
from benchmarking.tasks import TASKS
from benchmarking.texts import Prompts, passages_of_files, random_ids
from benchmarking.transformers_generate import TransformersModel
from tokenswift_jax.cli.converters import number, whole_list

# The contenders of the paper's protocol; others are compared with those that run first.
CONTENDERS = (
    *("autoregressive", TRANSFORMERS, "tokenswift-partial", "tokenswift-fused"),
    *("medusa", "selfspec", "ngram", "auto"),
)
MODES = tuple(dict.fromkeys(name.partition("-")[0] for name in CONTENDERS if name != TRANSFORMERS))
_NEED_HEADS = ("tokenswift", "medusa")
# Sizes of a run and of --quick, in tokens; the paper's "20K" is 20,480. The smaller capacity of --quick is the one that
# its other sections reserve, so that their programs serve.
_SIZES: dict[str, tuple[Any, Any]] = {
    "prefixes": ((1024, 8192), (64,)),
    "protocol_prefixes": ((2048, 4096, 8192), (64,)),
    "new_tokens": (512, 24),
    "long_tokens": (2048, 96),
    "tokens": ((20480,), (48,)),
    "capacities": ((4096, 131072), (256, 1024)),
    "windows": ((1024, 10240), (8, 16)),
}
SAMPLINGS: dict[str, dict[str, Any]] = {"checkpoint": {}, "greedy": {"temperature": 0.0}}


@dataclass(frozen=True)
class Settings:
    """A run of the benchmark.

    Attributes:
      asked: the flags, with sizes filled in: `prefixes` and so on, as `_SIZES` names them.
      model: the checkpoint.
      prompts: one passage a round, of the longest prefix.
      other: the same weights in transformers; None where it is not measured.
      llamas: GGUF files in llama.cpp.
      samplings: of the section `protocol`, by name.
      contenders: of the section `protocol`, in the order in which they run.
      report: prints a line of progress.
    """

    asked: argparse.Namespace
    model: ts.Model
    prompts: Prompts
    other: TransformersModel | None
    llamas: list[LlamaModel]
    samplings: dict[str, ts.SamplingConfig]
    contenders: tuple[str, ...]
    report: Callable[[str], None]


def speculation_of(name: str, node_budget: int | None, draft_cache: int) -> ts.SpeculationConfig:
    """How a contender other than transformers' generate drafts; `auto` chooses its node budget for itself."""
    mode, _, schedule = name.partition("-")
    budget = node_budget if mode in ("tokenswift", "medusa", "ngram") else None
    asked = ts.SpeculationConfig(node_budget=budget, draft_cache=draft_cache)
    return asked.with_mode(mode, schedule or "auto")


def add_flags(parser: argparse.ArgumentParser, sections: tuple[str, ...], usual: tuple[str, ...]) -> None:
    """Adds the flags; `sections` are known, the `usual` ones run unless others are named."""
    add = parser.add_argument
    add("--model", help="checkpoint directory or hub id (default: the bundled demo)")
    add("--dtype", help="of weights and activations")
    add("--sections", type=_names(sections), default=usual, help="comma separated; default: " + ",".join(usual))
    add("--modes", type=_names(MODES), default=("autoregressive", "tokenswift", "ngram", "auto"))
    add("--prefixes", type=whole_list("2048,4096"), help="tokens before the generated ones, e.g. 2048,4096")
    add("--temperatures", type=lambda text: tuple(map(number, text.split(","))), default=(0.0, 1.0))
    add("--new-tokens", type=int, help="of a run of speed, capacity and host")
    add("--node-budget", type=int, help="of tokenswift, medusa and ngram; `auto` chooses for itself")
    add("--rounds", type=int, default=3, help="timed runs of every contender (protocol: see --passages)")
    add("--seed", type=int, default=0)
    add("--prompt-file", type=Path, nargs="+", help="books, or folders of *.txt (default: random token ids)")
    add("--no-transformers", action="store_true", help="leave out transformers' generate")
    add("--llama", type=Path, nargs="+", default=[], help="GGUF files of the checkpoint, for llama.cpp (tasks)")
    add("--tasks", type=_names(TASKS), default=tuple(TASKS), help="comma separated (default: all)")
    add("--output", type=Path, help="JSON lines are appended (default: benchmarks/DATE-PLATFORM.jsonl)")
    add("--quick", action="store_true", help="tiny sizes: shows that everything runs, measures nothing")
    add = parser.add_argument_group("protocol").add_argument
    add("--sampling", type=_names(SAMPLINGS), default=("checkpoint",), help="checkpoint (its defaults), greedy or both")
    add("--draft-cache", type=int, default=512, help="slots of the draft cache (default: %(default)s)")
    add("--tokens", type=whole_list("2048,4096"), help="tokens to generate, e.g. 20480,102400 (default: 20480)")
    add("--contenders", type=_names(CONTENDERS), help="default: all that the checkpoint allows")
    add("--passages", type=int, default=1, help="texts of each length (default: %(default)s)")
    add("--transformers-tokens", type=int, default=2048, help="its limit; ratios are over equal windows")
    add("--audit", action="store_true", help="replay the texts of tokenswift and compare every draw")


def make_settings(asked: argparse.Namespace) -> Settings:
    """Loads the models and the prompts.

    Raises:
      UserError: a wrong flag, checkpoint or prompt file.
    """
    if asked.prefixes:
        asked.protocol_prefixes = asked.prefixes
    for name, sizes in _SIZES.items():
        if getattr(asked, name, None) is None:
            setattr(asked, name, sizes[asked.quick])
    least = {"rounds": 1, "passages": 1, "prefixes": 1, "new_tokens": 3, "tokens": 3, "transformers_tokens": 3}
    for name, low in least.items():
        value = getattr(asked, name)
        value = min(value) if isinstance(value, tuple) else value
        if value < low:
            raise ts.UserError(f"--{name.replace('_', '-')} {value}: at least {low}")
    speculation_of("selfspec", None, asked.draft_cache)  # raises where the cache is too small
    model = ts.load(asked.model, asked.dtype)
    contenders = _contenders(asked, model)
    used = {"protocol": asked.protocol_prefixes}
    longest = max(max(used.get(section, asked.prefixes)) for section in asked.sections)
    passages = max(asked.rounds, asked.passages)
    if "tasks" in asked.sections and not asked.prompt_file:
        raise ts.UserError("--sections tasks needs --prompt-file: a book, for the passages of its prompts")
    if asked.prompt_file:
        prompts = passages_of_files(model, asked.prompt_file, longest, passages)
    else:
        prompts = random_ids(model, longest, passages, asked.seed)
    if asked.node_budget is None:
        # CPU cores pay for every row of a verify, accelerators hardly.
        asked.node_budget = 3 if jax.default_backend() == "cpu" else 63
    return Settings(
        asked=asked,
        model=model,
        prompts=prompts,
        other=_transformers(asked, model, contenders),
        llamas=[LlamaModel(file, longest + 64 + asked.new_tokens) for file in asked.llama],
        samplings={name: model.sampling_config(**SAMPLINGS[name], seed=asked.seed) for name in asked.sampling},
        contenders=contenders,
        report=_report,
    )


def _contenders(asked: argparse.Namespace, model: ts.Model) -> tuple[str, ...]:
    """The named ones in the order of `CONTENDERS`: the baselines of ratios run first."""
    needing = [name for name in CONTENDERS if name.partition("-")[0] in _NEED_HEADS]
    lacking = () if model.config.num_draft_heads else needing
    wrong = [name for name in asked.contenders or () if name in lacking]
    if wrong:
        raise ts.UserError(f"--contenders {','.join(wrong)}: the checkpoint has no draft heads; leave them out")
    return tuple(name for name in CONTENDERS if name not in lacking and name in (asked.contenders or CONTENDERS))


def _transformers(asked: argparse.Namespace, model: Any, contenders: tuple[str, ...]) -> TransformersModel | None:
    """The other side of the comparison: where torch is installed, and on the same kind of device."""
    wanted = {"speed", "tasks", *(["protocol"] if TRANSFORMERS in contenders else [])}
    if asked.no_transformers or not wanted & set(asked.sections):
        return None
    if jax.default_backend() != "cpu" or find_spec("torch") is None:
        _report("transformers is left out: it would run on CPU, and torch must be installed")
        return None
    return TransformersModel(model)


def _report(message: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {message}", file=sys.stderr, flush=True)


def _names(known: Any) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; known: {', '.join(known)}")
        return names

    return parse
