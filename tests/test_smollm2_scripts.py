"""The scripts that made SmolLM2's draft heads, on the bundled demo: the texts, their states, and training on those."""

import numpy as np

import tokenswift_jax as ts
from scripts.smollm2 import train_heads
from scripts.smollm2.states import States
from scripts.smollm2.writer import Start, write
from tokenswift_jax.audit.teacher import teacher_forced
from tokenswift_jax.model import DEMO_MODEL

CAPACITY = 96


def test_texts_states_and_training(tmp_path):
    model = ts.load(dtype="float32")
    ids = [model.tokenizer.encode(text) for text in ("The road went up", "It was late in the autumn, and", "Once")]
    texts = list(
        write(
            model.graphdef,
            model.params,
            [Start(one, 0.0, 1) for one in ids],
            rows=2,
            capacity=CAPACITY,
            stops=model.eos_token_ids,
            seed=0,
        )
    )
    assert sorted(text.prompt for text in texts) == [0, 1, 2]  # the third began when another had ended
    for text in texts:
        plain = ts.SpeculationConfig(mode="autoregressive")
        prompt = ids[text.prompt]
        sampling = ts.SamplingConfig(temperature=0.0)
        wanted = ts.generate(model, prompt, sampling, plain, max_new_tokens=CAPACITY - len(prompt), stop=())
        assert text.tokens.tolist() == prompt + wanted.token_ids
        states = np.concatenate([np.asarray(part)[0] for _, part in teacher_forced(model, [text.tokens.tolist()])])
        read = len(text.tokens) - 1
        np.testing.assert_allclose(text.hidden[:read].astype(np.float32), states[:read], rtol=1e-2, atol=1e-2)

    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(2):
        States.of([(text.tokens, text.hidden) for text in texts]).save(folder / f"{number}.npz")
    assert States.load(sorted(folder.glob("*.npz"))).offsets.tolist()[-1] == 2 * sum(len(text.tokens) for text in texts)
    words = ["--model", str(DEMO_MODEL), "--texts", str(folder), "--held", "3", "--steps", "3", "--runs", "4"]
    words += ["--draft-vocab", "512", "--scored", "128", "--always", "32", "--report-steps", "3", "--rate", "1e-4"]
    assert train_heads.main([*words, "--output", str(tmp_path / "heads")]) == 0
    trained = ts.load(tmp_path / "heads")
    assert len(trained.config.draft_vocab) == 512
    before, after = (one.params["draft_heads"]["heads"][0]["down_proj"]["kernel"][...] for one in (model, trained))
    assert 0 < np.abs(np.asarray(after) - np.asarray(before)).max() < 1e-3
