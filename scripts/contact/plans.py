"""The plans: stages in order of worth, each with the sections that it runs and the seconds that it may take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PLAN_SECONDS = 360.0
"""Seconds of one plan, from its start to its last line."""
FEWEST_SECONDS = 20.0
"""Seconds with which a stage still starts; with fewer, the runner would end it before its first row."""
LENGTH = 16384
LARGE, SMALL = "Llama-3.1-8B", "Qwen2.5-1.5B"
# A machine without an accelerator runs every line of every stage, on shapes that measure nothing.
CPU_LENGTHS = {4096: 128, LENGTH: 300, 65536: 600, 126976: 900}
CPU_MODEL, CPU_COPIED, CPU_TOKENS = "tiny", 2**22, 48


@dataclass(frozen=True)
class Stage:
    """One process of a plan.

    Attributes:
      name: within its plan.
      sections: of `hardware.sections.SECTIONS`, in order.
      seconds: after which the runner ends it.
      settings: fields of `hardware.sections.Check` that differ from `DEFAULTS`.
      variables: of the environment, in addition to the runner's.
    """

    name: str
    sections: tuple[str, ...]
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)


DEFAULTS: dict[str, Any] = {
    "model": LARGE,
    "lengths": (LENGTH,),
    "copied_bytes": 2**32,
    "steps": ("plain",),
    "demo_dtype": "float32",
    "demo_tokens": 512,
    "variants": ("joined",),
}
_LENGTHS = (LENGTH, 65536, 4096, 126976)
_STEPS = ("plain", "verify-16", "verify-16-topkp", "verify-64")
_VARIANTS = ("joined", "apart", "triton", "padded", "untuned")

FIRST = (
    Stage("kernels", ("machine", "copy", "kernels"), 110),
    Stage("steps", ("steps",), 200, {"steps": _STEPS[:2], "lengths": _LENGTHS}),
    Stage("profile", ("profile", "profile_graphs"), 90),
    Stage("topkp", ("steps",), 90, {"steps": _STEPS[2:3]}),
)
SECOND = (
    Stage("texts-bfloat16", ("machine", "demo"), 90, {"demo_dtype": "bfloat16"}),
    Stage("texts-float32", ("demo",), 90),
    Stage("verify-64", ("copy", "steps"), 90, {"steps": ("plain", "verify-64"), "lengths": (LENGTH, 65536, 126976)}),
    Stage("1.5B", ("steps",), 75, {"model": SMALL, "steps": _STEPS[:2], "lengths": _LENGTHS}),
    Stage("partial-16", ("steps",), 75, {"steps": ("partial-16",)}),
    Stage("prefill", ("steps",), 60, {"steps": ("prefill",)}),
)
_TWO = (LENGTH, 126976)
THIRD = (
    Stage("kernels", ("machine", "copy", "kernels"), 110),
    Stage("8B", ("joined",), 75, {"steps": _STEPS, "lengths": _TWO}),
    Stage("texts-float32", ("demo",), 90),
    Stage("1.5B", ("joined",), 60, {"model": SMALL, "steps": _STEPS[:2], "variants": _VARIANTS, "lengths": _TWO}),
    Stage("lm-head", ("joined",), 45, {"steps": _STEPS[1:2], "variants": ("joined", "two passes")}),
)
FOURTH = (
    Stage("random-texts", ("random_texts",), 220, {"demo_tokens": 20480}),
    Stage("14B", ("copy", "steps"), 75, {"model": "Qwen2.5-14B", "steps": _STEPS[:2], "lengths": _TWO}),
    # PyTorch needs the memory that JAX would reserve.
    Stage(
        "transformers", ("transformers",), 60, {"lengths": (4096, LENGTH)}, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    ),
    Stage("attention", ("attention",), 45, {"lengths": _TWO}),
)
# Open after the fourth plan: `partial` since the mend of its loop, the tiles since, prefill's time.
FIFTH = (
    Stage("texts-float32", ("machine", "copy", "demo"), 130),
    Stage("8B", ("joined",), 75, {"steps": ("plain", "verify-16", "verify-64"), "lengths": _TWO}),
    Stage("prefill", ("steps", "profile"), 75, {"steps": ("prefill", "prefill-1024", "prefill-2048")}),
    Stage("14B", ("steps",), 60, {"model": "Qwen2.5-14B", "steps": ("plain", "verify-12"), "lengths": _TWO}),
    Stage("attention", ("attention",), 50, {"lengths": _TWO}),
    Stage("1.5B", ("steps",), 45, {"model": SMALL, "steps": ("plain", "verify-10"), "lengths": _TWO}),
)
# Open after the fifth plan: attention's programs of few columns. Its last stage was left one second.
SIXTH = (
    Stage(
        "8B",
        ("copy", "joined"),
        100,
        {"steps": ("plain", "verify-16"), "variants": ("joined", "64 columns", "49 splits"), "lengths": _TWO},
    ),
    Stage("attention", ("attention",), 60, {"lengths": _TWO}),
    Stage("random-texts", ("random_texts",), 150, {"demo_tokens": 4096}),
)
# Open after the sixth plan: mode `auto` on random weights since its heads are counted right, and the widest plans that
# it is offered after LENGTH tokens. Texts of real weights are open too; `scripts/plan_table.py` measures SmolLM2's.
SEVENTH = (
    Stage("random-texts", ("machine", "random_texts"), 200, {"demo_tokens": 4096}),
    Stage("8B", ("copy", "steps"), 60, {"steps": ("plain", "verify-32")}),
    Stage("14B", ("steps",), 60, {"model": "Qwen2.5-14B", "steps": ("plain", "verify-12", "verify-25")}),
)
PLANS = {"first": FIRST, "second": SECOND, "third": THIRD, "fourth": FOURTH, "fifth": FIFTH, "sixth": SIXTH}
PLANS["seventh"] = SEVENTH


def stage_named(plan: str, name: str) -> Stage:
    """A stage of a plan; KeyError for an unknown one."""
    return {stage.name: stage for stage in PLANS[plan]}[name]


def settings_of(stage: Stage, small: bool) -> dict[str, Any]:
    """The fields of `hardware.sections.Check` of a stage; `small` for a machine without an accelerator."""
    chosen = {**DEFAULTS, **stage.settings}
    if small:
        chosen["model"] = CPU_MODEL
        chosen["lengths"] = tuple(CPU_LENGTHS[length] for length in chosen["lengths"])
        chosen["copied_bytes"], chosen["demo_tokens"] = CPU_COPIED, CPU_TOKENS
    # Slots for the tokens that timed calls write after the longest of the lengths.
    chosen["capacity"] = -(-(max(chosen["lengths"]) + 2048) // 256) * 256
    return chosen
