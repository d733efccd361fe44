"""Very long text from a language model, several times faster and token for token the same, in JAX.

The package imports each name when it is first used, so that commands answer `--help` and wrong flags at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenswift_jax.api import StreamEvent, generate, stream
    from tokenswift_jax.errors import NumericsError, UserError
    from tokenswift_jax.hardware.environment import describe_environment
    from tokenswift_jax.hardware.host_work import host_work
    from tokenswift_jax.model import Model, load
    from tokenswift_jax.sampling import SamplingConfig
    from tokenswift_jax.scoring import ScoredText, draft_logits, score, score_tokens
    from tokenswift_jax.speculation import SpeculationConfig
    from tokenswift_jax.stats import GenerationResult
    from tokenswift_jax.token_log import TokenLog
    from tokenswift_jax.training.swift_trainer import SwiftTrainer

__version__ = "0.1.0"
__all__ = [
    "GenerationResult",
    "Model",
    "NumericsError",
    "SamplingConfig",
    "ScoredText",
    "SpeculationConfig",
    "StreamEvent",
    "SwiftTrainer",
    "TokenLog",
    "UserError",
    "__version__",
    "describe_environment",
    "draft_logits",
    "generate",
    "host_work",
    "load",
    "score",
    "score_tokens",
    "stream",
]

_HOMES = {
    "GenerationResult": "stats",
    "Model": "model",
    "NumericsError": "errors",
    "SamplingConfig": "sampling",
    "ScoredText": "scoring",
    "SpeculationConfig": "speculation",
    "StreamEvent": "api",
    "SwiftTrainer": "training.swift_trainer",
    "TokenLog": "token_log",
    "UserError": "errors",
    "describe_environment": "hardware.environment",
    "draft_logits": "scoring",
    "generate": "api",
    "host_work": "hardware.host_work",
    "load": "model",
    "score": "scoring",
    "score_tokens": "scoring",
    "stream": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `generate` the function. Without it, importing the command of that name replaces it by the module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
