"""The settings of a batch whose rows are asked for the same, as decoding reads them."""

from tokenswift_jax.request import batch_of
from tokenswift_jax.sample.params import SequenceParams, sequence_params
from tokenswift_jax.sampling import SamplingConfig


def settings_of(
    config: SamplingConfig,
    *,
    vocab: int,
    batch: int = 1,
    eos_ids: tuple[int, ...] = (),
    min_new_tokens: int = 0,
    prompt_length: int = 1,
    max_new_tokens: int = 0,
) -> SequenceParams:
    """Row i draws with `config.sequence` + i; prompts are of one length."""
    return sequence_params(
        batch_of(
            [range(prompt_length)] * batch,
            config,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            eos_token_ids=eos_ids,
        ),
        vocab,
    )
