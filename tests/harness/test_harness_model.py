"""lm-evaluation-harness on a model of this package; `pip install lm-eval` runs these tests.

The expected scores are those of the harness's `hf` model (tests/harness_tasks.py).
"""

import json
import subprocess
import sys

import pytest

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

import tokenswift_jax as ts
from tests.harness_tasks import SCORES, SHARED, TASKS, evaluated
from tokenswift_jax.errors import UserError
from tokenswift_jax.harness.__main__ import with_presets
from tokenswift_jax.harness.model import TokenSwiftLM
from tokenswift_jax.sampling import resolve_sampling

PROMPTS = ("It was late in the autumn, and the road", "My dear sister,", "The horse would not")


@pytest.fixture(scope="module")
def lm():
    return TokenSwiftLM()


def instances(kind, *arguments):
    return [Instance(kind, {}, pair, number) for number, pair in enumerate(arguments)]


def test_scores_and_texts_are_those_of_the_hf_model(lm):
    metrics, answers = evaluated(lm)
    expected = json.loads(SCORES.read_text())
    assert set(metrics) == set(expected["metrics"]) == {"endings", "letters", "perplexity", "texts"}
    for task, values in expected["metrics"].items():
        assert metrics[task] == pytest.approx(values, rel=1e-5), task
    assert answers["texts"] == expected["answers"]["texts"]
    for task in ("endings", "letters", "perplexity"):
        assert [flags(one) for one in answers[task]] == [flags(one) for one in expected["answers"][task]]
        assert numbers(answers[task]) == pytest.approx(numbers(expected["answers"][task]), abs=1e-3)


def flags(responses):
    return [response[1] for response in responses if isinstance(response, list)]


def numbers(documents):
    """The log-probabilities of all answers."""
    each = [response for responses in documents for response in responses]
    return [response[0] if isinstance(response, list) else response for response in each]


def test_windows_of_a_text_longer_than_the_positions():
    """Each window follows one token of the one before, and the last one has all the context that fits."""
    short = TokenSwiftLM(max_length=16)
    text = "It was late in the autumn, and the road that led down to the village was wet. " * 3
    ids = short.tok_encode(text)
    assert len(ids) > 40
    ids, expected = [short.prefix_token_id, *ids], 0.0
    for first in range(1, len(ids), 16):
        end = min(first + 16, len(ids))
        scored = ts.score_tokens(short.model, [ids[end - min(17, end) : end]])[0].logprobs
        expected += float(scored[-(end - first) :].sum())
    assert short.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)), True) == pytest.approx(
        [expected], abs=1e-3
    )


def test_a_long_context_loses_its_beginning():
    short = TokenSwiftLM(max_length=16)
    context = "It was late in the autumn, and the road that led down to the village was wet and dark."
    ((value, _),) = short.loglikelihood(instances("loglikelihood", (context, " He came")), True)
    whole = short.tok_encode(context + " He came")
    kept = len(whole) - len(short.tok_encode(context))
    scored = ts.score_tokens(short.model, [whole[-17:]])[0].logprobs
    assert value == pytest.approx(float(scored[-kept:].sum()), abs=1e-3)


def test_texts_that_are_not_greedy_are_those_of_generate(lm):
    asked = {"until": ["."], "max_gen_toks": 12, "do_sample": True, "temperature": 0.8, "top_k": 40}
    found = lm.generate_until(instances("generate_until", *((prompt, asked) for prompt in PROMPTS)), True)
    sampling = resolve_sampling({"seed": 0, "temperature": 0.8, "top_k": 40}, lm.model.generation_config)
    alone = ts.generate(lm.model, list(PROMPTS), sampling, max_new_tokens=12, stop=".")
    assert found == [result.text for result in alone]


def test_what_cannot_be_fulfilled_is_one_line(lm):
    with pytest.raises(UserError, match="num_beams"):
        lm.generate_until(instances("generate_until", (PROMPTS[0], {"until": [], "num_beams": 4})), True)
    most = lm.max_length
    with pytest.raises(UserError, match=f"max_gen_toks is {most}; it must be from 1 to {most - 1}"):
        lm.generate_until(instances("generate_until", (PROMPTS[0], {"until": [], "max_gen_toks": most})), True)
    for wrong, named in [
        ({"device": "cuda:1"}, "JAX chooses"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 1}, "max_length is 1"),
        ({"mode": "fast"}, "'fast'"),
        ({"batch_size": "auto", "max_batch_size": -1}, "max_batch_size is -1"),
        ({"think_end_token": "x", "trust_remote_code": True}, "no argument think_end_token;"),
    ]:
        with pytest.raises(UserError, match=named):
            TokenSwiftLM(**wrong)


def test_a_turn_that_a_task_has_begun_goes_on():
    lm = TokenSwiftLM()
    lm.tokenizer.chat_template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}</>{% endfor %}"
    begun = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "The answer is"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == "<user>Which?</><assistant>The answer is"


def test_a_context_of_whitespace_is_a_text_without_context(lm):
    ((value, _),) = lm.loglikelihood(instances("loglikelihood", ("", " He came")), True)
    tokens = [lm.prefix_token_id, *lm.tok_encode(" He came", add_special_tokens=False)]
    scored = ts.score_tokens(lm.model, [tokens])[0]
    assert value == pytest.approx(float(scored.logprobs.sum()), abs=1e-4)
    found = lm._loglikelihood_tokens([(None, [], tokens[1:])], True)
    assert found[0][0] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "added"),
    [
        ("--tasks x", "--model tokenswift --batch_size auto"),
        ("run -t x -b4", "--model tokenswift"),
        ("--tasks x --model=hf --batch_size 2", ""),
        ("validate --tasks x", ""),
        ("ls tasks", ""),
        ("--help", ""),
    ],
)
def test_the_command_adds_what_nobody_named(words, added):
    assert with_presets(words.split()) == [*words.split(), *added.split()]


@pytest.mark.long
def test_the_command_knows_the_model(tmp_path):
    """With a task in a file; JSON is YAML."""
    task = next(task for task in TASKS if task["task"] == "letters")
    (tmp_path / "letters.yaml").write_text(json.dumps(task | SHARED))
    words = ["--tasks", "letters", "--include_path", str(tmp_path), "--output_path", "found.json"]
    done = subprocess.run(
        [sys.executable, "-m", "tokenswift_jax.harness", *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (found,) = tmp_path.rglob("found*.json")
    results = json.loads(found.read_text())
    assert results["results"]["letters"]["acc,none"] == json.loads(SCORES.read_text())["metrics"]["letters"]["acc,none"]
    assert (results["config"]["model"], results["config"]["batch_size"]) == ("tokenswift", "auto")
