"""The benchmark's flags, and the settings that they ask for."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

import tokenswift_jax as ts
from benchmarking.ablations import ABLATIONS
from benchmarking.contenders import CONTENDERS, NEED_HEADS, TRANSFORMERS, speculation_of
from benchmarking.settings import AblationSettings, ProtocolSettings, Settings
from benchmarking.texts import passages_of_files, passages_of_the_model
from benchmarking.transformers_generate import TransformersModel, is_available
from tokenswift_jax.model import Model
from tokenswift_jax.sampling import SamplingConfig, resolve_sampling
from tokenswift_jax.speculation import MODES

# CPU cores pay for every row of a verify, accelerators hardly.
_NODE_BUDGET_CPU, _NODE_BUDGET_ELSEWHERE = 3, 63
# The paper's "20K" is 20,480 tokens.
_FULL = {
    "prefixes": (1024, 8192),
    "new_tokens": 512,
    "long_tokens": 2048,
    "capacities": (4096, 131072),
    "protocol": {"prefixes": (2048, 4096, 8192), "tokens": (20480,), "windows": (1024, 10240)},
    "ablations": {"prefix": 2048, "tokens": 2048, "ends_only": False},
}
_QUICK = {
    "prefixes": (64,),
    "new_tokens": 24,
    "long_tokens": 96,
    "capacities": (256, 1024),  # the smaller is what the other sections reserve, so that their programs serve
    "protocol": {"prefixes": (64,), "tokens": (48,), "windows": (8, 16)},
    "ablations": {"prefix": 64, "tokens": 24, "ends_only": True},
}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "checkpoint": {},
    "greedy": {"temperature": 0.0},
}


def add_flags(parser: argparse.ArgumentParser, sections: tuple[str, ...], usual: tuple[str, ...]) -> None:
    """Adds the flags; `sections` are known, the `usual` ones run unless others are named."""
    add = parser.add_argument
    add("--model", help="checkpoint directory or hub id; the bundled demo without")
    add("--dtype", help="of weights and activations")
    add("--sections", type=_names(sections), default=usual, help="comma separated; default: " + ",".join(usual))
    add("--modes", type=_names(MODES), default=("autoregressive", "tokenswift", "ngram", "auto"))
    add("--prefixes", type=_numbers(int), help="tokens before the generated ones, e.g. 2048,4096; ablations: the first")
    add("--temperatures", type=_numbers(float), default=(0.0, 1.0))
    add("--new-tokens", type=int, help="a run of speed, capacity and host")
    add("--node-budget", type=int, help="of tokenswift, medusa and ngram; `auto` chooses for itself")
    add("--rounds", type=int, default=3, help="timed runs of every contender (protocol: see --passages)")
    add("--seed", type=int, default=0)
    add("--prompt-file", type=Path, nargs="+", help="books, or folders of *.txt; without: what the model itself writes")
    add("--no-transformers", action="store_true", help="leave out transformers' generate")
    add("--output", type=Path, help="JSON lines are appended; default benchmarks/DATE-PLATFORM.jsonl")
    add("--quick", action="store_true", help="tiny sizes: shows that everything runs, measures nothing")
    add = parser.add_argument_group("protocol and ablations").add_argument
    add(
        "--sampling", type=_names(SAMPLINGS), default=("checkpoint",), help="checkpoint (its defaults), greedy, or both"
    )
    add("--draft-cache", type=int, default=512, help="slots of the draft cache (default: %(default)s)")
    add = parser.add_argument_group("protocol").add_argument
    add("--tokens", type=_numbers(int), help="tokens to generate, e.g. 20480,102400 (default: 20480)")
    add("--contenders", type=_names(CONTENDERS), help="default: all that the checkpoint allows")
    add("--passages", type=int, default=1, help="texts of each length (default: %(default)s)")
    add("--transformers-tokens", type=int, default=2048, help="its limit; ratios are over equal windows")
    add("--audit", action="store_true", help="replay the texts of tokenswift and compare every draw")
    add = parser.add_argument_group("ablations").add_argument
    add("--ablations", type=_names(ABLATIONS), default=tuple(ABLATIONS), help="comma separated; default: all")
    add("--ablation-tokens", type=int, help="of every run (default: 2048)")
    add("--heads-checkpoint", help="a checkpoint that differs in its heads, for the ablation `heads`")


def make_settings(arguments: argparse.Namespace) -> Settings:
    """Loads the models and the prompts.

    Raises:
      UserError: whatever is wrong with the arguments, the checkpoint or the prompt files.
    """
    sizes: dict[str, Any] = dict(_QUICK if arguments.quick else _FULL)
    sizes |= {"prefixes": arguments.prefixes} if arguments.prefixes else {}
    sizes |= {"new_tokens": arguments.new_tokens} if arguments.new_tokens is not None else {}
    protocol, ablations = dict(sizes.pop("protocol")), dict(sizes.pop("ablations"))
    protocol |= {"prefixes": arguments.prefixes} if arguments.prefixes else {}
    protocol |= {"tokens": arguments.tokens} if arguments.tokens else {}
    ablations |= {"prefix": arguments.prefixes[0]} if arguments.prefixes else {}
    ablations |= {"tokens": arguments.ablation_tokens} if arguments.ablation_tokens is not None else {}
    for flag, value, least in (
        ("--rounds", arguments.rounds, 1),
        ("--passages", arguments.passages, 1),
        ("--new-tokens", sizes["new_tokens"], 3),
        ("--tokens", min(protocol["tokens"]), 3),
        ("--transformers-tokens", arguments.transformers_tokens, 3),
        ("--ablation-tokens", ablations["tokens"], 3),
        ("--prefixes", min(sizes["prefixes"]), 1),
    ):
        if value < least:
            raise ts.UserError(f"{flag} {value}: at least {least}")
    speculation_of("selfspec", None, arguments.draft_cache)  # raises where the cache is too small
    model = ts.load(arguments.model, arguments.dtype)
    contenders = _contenders(arguments, model)
    used = {"protocol": protocol["prefixes"], "ablations": (ablations["prefix"],)}
    longest = max(max(used.get(section, sizes["prefixes"])) for section in arguments.sections)
    passages = max(arguments.rounds, arguments.passages)
    if arguments.prompt_file:
        prompts = passages_of_files(model, arguments.prompt_file, longest, passages)
    else:
        _report(f"writing {passages} prompts of {longest:,} tokens with the model itself")
        prompts = passages_of_the_model(model, longest, passages, arguments.seed)
    on_cpu = jax.default_backend() == "cpu"
    budget = arguments.node_budget
    if budget is None:
        budget = _NODE_BUDGET_CPU if on_cpu else _NODE_BUDGET_ELSEWHERE
    heads = None if arguments.heads_checkpoint is None else ts.load(arguments.heads_checkpoint, arguments.dtype)
    return Settings(
        model=model,
        prompts=prompts,
        other=_transformers(arguments, model, contenders, on_cpu),
        temperatures=arguments.temperatures,
        modes=arguments.modes,
        node_budget=budget,
        draft_cache=arguments.draft_cache,
        samplings={name: _sampling(model, name, arguments.seed) for name in arguments.sampling},
        rounds=arguments.rounds,
        seed=arguments.seed,
        protocol=ProtocolSettings(
            contenders=contenders,
            passages=arguments.passages,
            transformers_tokens=arguments.transformers_tokens,
            audit=arguments.audit,
            **protocol,
        ),
        ablations=AblationSettings(names=arguments.ablations, heads=heads, **ablations),
        report=_report,
        **sizes,
    )


def _sampling(model: Model, name: str, seed: int) -> SamplingConfig:
    """As `generate` resolves it: what is given, else the checkpoint's."""
    return resolve_sampling(SAMPLINGS[name] | {"seed": seed}, model.generation_config)


def _contenders(arguments: argparse.Namespace, model: Model) -> tuple[str, ...]:
    """In the order of `CONTENDERS`, whatever order they were named in: ratios need what they are taken with first."""
    lacking = () if model.config.num_draft_heads else NEED_HEADS
    if arguments.contenders is None:
        return tuple(name for name in CONTENDERS if name not in lacking)
    wrong = [name for name in arguments.contenders if name in lacking]
    if wrong:
        raise ts.UserError(f"--contenders {','.join(wrong)}: the checkpoint has no draft heads; leave them out")
    return tuple(name for name in CONTENDERS if name in arguments.contenders)


def _transformers(
    arguments: argparse.Namespace, model: Any, contenders: tuple[str, ...], on_cpu: bool
) -> TransformersModel | None:
    """The other side of the comparison: where torch is installed, and on the same kind of device."""
    asked = "speed" in arguments.sections or ("protocol" in arguments.sections and TRANSFORMERS in contenders)
    if arguments.no_transformers or not asked:
        return None
    if not on_cpu or not is_available():
        _report("transformers is left out: " + ("it would run on CPU" if not on_cpu else "torch is not installed"))
        return None
    return TransformersModel(model)


def _report(message: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {message}", file=sys.stderr, flush=True)


def _names(known: Any):
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; known: {', '.join(known)}")
        return names

    return parse


def _numbers(kind: type):
    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a comma separated list of numbers") from None

    return parse
