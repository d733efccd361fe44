"""`score` and `draft_logits` against a float64 decoder, and their shapes, padding and refusals."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tokenswift_jax as ts
from tests.checkpoint.checkpoints_made_here import FAMILIES, add_tokenizer, heads
from tests.models import numpy_decoder as oracle
from tests.small_models import successor_model, weights
from tokenswift_jax.audit.teacher import ROWS
from tokenswift_jax.engine import capacity as memory
from tokenswift_jax.scoring import _reduction

HEADS = 2
# Of the largest logit of a row: float32 against float64 over 2 layers gives 1e-6 to 1e-5, an error in RoPE, masking
# or the heads' chain a third and more.
RELATIVE = 2e-4


def sequential_heads(size):
    rng = np.random.default_rng(7)
    shapes = {"gate_proj": (size, 2 * size), "up_proj": (size, 2 * size), "down_proj": (size, size)}
    shapes |= {f"{norm}_layernorm": (size,) for norm in ("input", "token", "post")}
    return {
        f"medusa_layers.{head}.{part}.weight": rng.normal(0, 0.3, shape).astype(np.float32)
        for head in range(HEADS)
        for part, shape in shapes.items()
    }


@pytest.fixture(scope="module", params=["chained", "sequential"])
def folder(request, tmp_path_factory):
    """The Llama 3.1 fixture with draft heads and a tokenizer."""
    folder = shutil.copytree(FAMILIES / "llama3_1", tmp_path_factory.mktemp("scoring") / "model")
    save_file(heads(32, HEADS) if request.param == "chained" else sequential_heads(32), folder / "heads.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["tokenswift"] = {"num_heads": HEADS, "head_type": request.param}
    (folder / "config.json").write_text(json.dumps(config))
    add_tokenizer(folder, 100)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return ts.load(folder)


@pytest.fixture(scope="module")
def texts():
    """One of more than a chunk, one short, one of a single token."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 128, length).tolist() for length in (ROWS + 44, 37, 1)]


@pytest.fixture(scope="module")
def expected(folder, texts):
    """[tokens, heads + 1, vocab] in float64 for each text."""
    tensors = load_file(folder / "model.safetensors") | load_file(folder / "heads.safetensors")
    values = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    results = []
    for text in texts:
        hidden = oracle.hidden_states(
            values,
            np.asarray(text),
            np.arange(len(text)),
            heads=4,
            kv_heads=2,
            eps=1e-5,
            theta=500_000.0,
            scaling={"kind": "llama3", "factor": 8.0, "low": 1.0, "high": 4.0, "original": 64},
            windows=(None, None),
        )
        if "medusa_layers.0.linear.weight" in values:
            drafts = oracle.draft_logits(values, hidden, 1e-5, HEADS)
        else:
            drafts = oracle.sequential_draft_logits(values, hidden, np.asarray(text), 1e-5, HEADS)
        results.append(np.concatenate([oracle.logits(values, hidden, 1e-5)[:, None], drafts], axis=1))
    return results


def error(actual, expected):
    return (np.abs(actual - expected).max(-1) / np.abs(expected).max(-1)).max()


def test_score_is_the_decoder_s_logits(model, texts, expected):
    logits = ts.score(model, texts)
    assert (logits.shape, logits.dtype) == ((3, ROWS + 44, 128), np.float32)
    for row, text in enumerate(texts):
        assert error(logits[row, : len(text)], expected[row][:, 0]) < RELATIVE
        assert np.isnan(logits[row, len(text) :]).all(), "past a text's end there is nothing"


def test_draft_logits_are_the_backbone_s_and_each_head_s(model, texts, expected):
    logits = ts.draft_logits(model, texts)
    assert (logits.shape, logits.dtype) == ((3, ROWS + 44, HEADS + 1, 128), np.float32)
    for row, text in enumerate(texts):
        for head in range(HEADS + 1):
            unseen = head if model.config.draft_head_type == "sequential" else 0
            known = max(len(text) - unseen, 0)
            if known:
                assert error(logits[row, :known, head], expected[row][:known, head]) < RELATIVE, head
            assert np.isnan(logits[row, known:, head]).all()
    np.testing.assert_array_equal(logits[:, :, 0], ts.score(model, texts))


def test_a_row_of_a_batch_is_the_text_alone(model, texts):
    together = ts.score(model, texts)
    for row, text in enumerate(texts[:2]):
        # Another batch size is another program, whose sums may run in another order.
        np.testing.assert_allclose(ts.score(model, [text])[0], together[row, : len(text)], rtol=0, atol=1e-5)


def test_entry_j_is_for_the_token_j_places_on(model):
    """Heads that were made to foresee a fixed succession of tokens do so at i + 1 + j, in a text that follows it."""
    foreseeing = successor_model(32, context=0.0, certainty=8.0)
    successor = ts.score(foreseeing, [list(range(32))])[0].argmax(-1)  # attention adds nothing: context is 0
    text = [7]
    for _ in range(40):
        text.append(int(successor[text[-1]]))
    guesses = ts.draft_logits(foreseeing, [text])[0].argmax(-1)
    for head in range(4):
        assert guesses[: len(text) - 1 - head, head].tolist() == text[1 + head :], head


def test_strings_and_arrays_are_texts_too(model):
    ids = model.tokenizer("w5 w9 w17").input_ids
    assert ids == [5, 9, 17]
    for text in ("w5 w9 w17", np.asarray(ids), tuple(ids)):
        np.testing.assert_array_equal(ts.score(model, [text]), ts.score(model, [ids]))


def test_float64_models_are_scored_in_float64():
    """Rounded to float32 only at the end: nearer to the float64 decoder than float32 arithmetic gets."""
    with jax.enable_x64(True):
        model = successor_model(40, dtype=np.float64)
        text = np.random.default_rng(1).integers(0, 40, 60).tolist()
        actual = ts.draft_logits(model, [text])[0]
    config, values = model.config, weights(model)
    hidden = oracle.hidden_states(
        values,
        np.asarray(text),
        np.arange(60),
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        eps=config.rms_norm_eps,
        theta=config.rope.theta,
        scaling=None,
        windows=config.sliding_windows,
    )
    drafts = oracle.draft_logits(values, hidden, config.rms_norm_eps, config.num_draft_heads)
    exact = np.concatenate([oracle.logits(values, hidden, config.rms_norm_eps)[:, None], drafts], axis=1)
    np.testing.assert_allclose(actual, exact, rtol=1e-7, atol=1e-9)  # half an ulp of float32 is 6e-8


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([[]], "the text is empty"),
        ([[1, 128]], "token id 128 of the text is outside the vocabulary of 0..127"),
        ([[1] * 513], "a text to score holds 1 to 512 tokens"),
        ([], "a list of texts"),
        ("w5", "a list of texts"),
        ([1, 2], "a list of texts"),
        ([[1.5]], "a text is a string or a list of token ids, and 1.5 is no token id"),
    ],
)
def test_what_is_refused(model, texts, message):
    for function in (ts.score, ts.draft_logits):
        with pytest.raises(ts.UserError, match=message):
            function(model, texts)


def test_tensors_of_the_other_head_type_are_listed(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    sequential = config["tokenswift"]["head_type"] == "sequential"
    config["tokenswift"]["head_type"] = "chained" if sequential else "sequential"
    (other / "config.json").write_text(json.dumps(config))
    absent, foreign = ("linear", "down_proj") if sequential else ("down_proj", "linear")
    with pytest.raises(ts.UserError) as caught:
        ts.load(other)
    missing, extra = str(caught.value).split("extra: ")
    assert f"missing: medusa_layers.0.{absent}.weight" in missing
    assert f"medusa_layers.0.{foreign}.weight" in extra


def test_too_little_memory_is_an_error_in_the_terms_of_scoring(model, texts, monkeypatch):
    monkeypatch.setattr(memory, "_free_bytes", lambda: 1000)
    with pytest.raises(ts.UserError, match=r"the cache of 3 x 512 positions .* give fewer or shorter texts at once$"):
        ts.score(model, texts)


def test_draft_logits_without_heads():
    model = ts.load(FAMILIES / "llama2")
    with pytest.raises(ts.UserError, match="no draft heads"):
        ts.draft_logits(model, [[1, 2]])
    assert ts.score(model, [[1, 2]]).shape == (1, 2, 128)


def test_the_logits_of_one_text_are_in_memory_at_a_time():
    model = successor_model(32, context=0.0, certainty=8.0)
    size, vocab = model.config.hidden_size, model.config.padded_vocab

    def temporaries(batch):
        hidden, following = jnp.zeros((batch, ROWS, size)), jnp.zeros((batch, ROWS), jnp.int32)
        memory = _reduction(model.graphdef, 2).lower(model.params, hidden, following).compile().memory_analysis()
        return memory.temp_size_in_bytes

    logits = ROWS * vocab * 4
    assert temporaries(16) - temporaries(2) < logits
