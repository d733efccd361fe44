"""Checkpoint directories in HF's layout: this package finds, checks, loads (tensor by tensor) and saves them."""

from tokenswift_jax.checkpoint.directory import (
    check_apart,
    load_generation_config,
    load_tokenizer,
    named_on_hub,
    resolve,
)
from tokenswift_jax.checkpoint.fingerprints import fingerprint, known_fingerprint, target_fingerprint
from tokenswift_jax.checkpoint.load import chosen_dtype, load_decoder, open_checkpoint
from tokenswift_jax.checkpoint.save import save, state_tensors

__all__ = [
    "check_apart",
    "chosen_dtype",
    "fingerprint",
    "known_fingerprint",
    "load_decoder",
    "load_generation_config",
    "load_tokenizer",
    "named_on_hub",
    "open_checkpoint",
    "resolve",
    "save",
    "state_tensors",
    "target_fingerprint",
]
