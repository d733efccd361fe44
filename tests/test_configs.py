"""The configurations of the paper's models: read by the command, with the numbers of its Table 9."""

from pathlib import Path

import pytest

from tokenswift_jax.training.settings import read_settings

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = sorted(
    path.stem
    for path in CONFIGS.glob("*.json")
    if path.stem not in ("demo", "smollm2-135m-instruct", "smollm2-own-texts", "smollm2_prompts")
)


def test_one_a_model():
    assert PAPER == ["llama-3.1-8b", "qwen2.5-1.5b", "qwen2.5-14b", "qwen2.5-7b", "yarn-llama-2-7b-128k"]


@pytest.mark.parametrize("name", PAPER)
def test_table_9(name):
    settings = read_settings(CONFIGS / f"{name}.json", {})
    large = name == "qwen2.5-14b"
    rows = settings.batch_size * settings.gradient_accumulation_steps
    assert (rows, settings.max_steps, settings.learning_rate) == ((40, 600, 1e-3) if large else (120, 200, 5e-3))
    # The same text in all either way: 24,000 rows of 8,192 tokens.
    assert settings.tokens_per_step * settings.max_steps == 24_000 * 8192
    assert (settings.what, settings.heads, settings.head_type) == ("heads", 3, "chained")
    assert (settings.warmup_steps, settings.lr_schedule) == (50, "cosine")
    assert (settings.weight_decay, settings.betas, settings.dtype) == (0.1, (0.9, 0.999), "bfloat16")
    assert settings.distill_weight == 0


def test_training_on_own_texts_reads_every_text_in_each_epoch():
    settings = read_settings(CONFIGS / "smollm2-own-texts.json", {})
    assert (settings.self_distill, settings.distill_weight, settings.keep_states) == (4096, 1.0, True)
    assert settings.self_distill % settings.batch_size == 0
    assert settings.max_length - settings.self_distill_prompt >= 64  # room for an answer


def test_a_flag_overrides_its_field():
    settings = read_settings(CONFIGS / "llama-3.1-8b.json", {"batch_size": 1, "gradient_accumulation_steps": 120})
    assert settings.tokens_per_step == read_settings(CONFIGS / "llama-3.1-8b.json", {}).tokens_per_step
