"""Clients of others against a live server, each skipped where its package is missing:

`pip install litellm langchain-openai 'pydantic-ai-slim[openai]' lm-eval`, and `npm install openai` for Node.
"""

import json
import shutil
import subprocess

import pytest

pytest.importorskip("starlette")
from tests.harness_tasks import SCORES, evaluated
from tokenswift_jax.scoring import score_tokens

PROMPT = "It was late in the autumn, and the road"
TURNS = [{"role": "user", "content": PROMPT}]
MOST = 24


@pytest.fixture(scope="module")
def address(live):
    return f"http://127.0.0.1:{live.port}/v1"


@pytest.fixture(scope="module")
def expected(live):
    return live.alone(PROMPT, MOST, seed=4).text


def test_litellm(address, expected):
    litellm = pytest.importorskip("litellm")
    asked = {
        "model": "openai/demo",
        "api_base": address,
        "api_key": "any",
        "messages": TURNS,
        "max_tokens": MOST,
        "seed": 4,
    }
    answer = litellm.completion(**asked)
    assert answer.choices[0].message.content == expected
    assert answer.usage.completion_tokens == MOST
    parts = litellm.completion(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == expected
    with pytest.raises(litellm.BadRequestError, match="frequency_penalty"):
        litellm.completion(**asked, frequency_penalty=1.0)


def test_langchain(address, expected):
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(model="demo", base_url=address, api_key="any", max_tokens=MOST, seed=4, max_retries=0)
    assert chat.invoke(PROMPT).content == expected
    assert "".join(part.content for part in chat.stream(PROMPT)) == expected


def test_pydantic_ai(address, expected):
    pydantic_ai = pytest.importorskip("pydantic_ai")
    models = pytest.importorskip("pydantic_ai.models.openai")
    providers = pytest.importorskip("pydantic_ai.providers.openai")
    model = models.OpenAIChatModel("demo", provider=providers.OpenAIProvider(base_url=address, api_key="any"))
    agent = pydantic_ai.Agent(model, model_settings={"max_tokens": MOST, "seed": 4})
    assert agent.run_sync(PROMPT).output == expected


def test_node(address, expected):
    """NODE_PATH names the folder `node_modules` that has the package."""
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require.resolve('openai')"], capture_output=True).returncode:
        pytest.skip("Node or its package openai is missing")
    script = """
        const OpenAI = require('openai');
        const [baseURL, content, most] = process.argv.slice(1);
        (async () => {
            const client = new OpenAI({ baseURL, apiKey: 'any', maxRetries: 0 });
            const asked = { model: 'demo', messages: [{ role: 'user', content }], max_tokens: Number(most), seed: 4 };
            const whole = await client.chat.completions.create(asked);
            let streamed = '';
            for await (const part of await client.chat.completions.create({ ...asked, stream: true }))
                streamed += part.choices[0]?.delta?.content ?? '';
            let refused = null;
            const wrong = client.chat.completions.create({ ...asked, n: 1000 });
            await wrong.catch((error) => { refused = error.param; });
            console.log(JSON.stringify([whole.choices[0].message.content, streamed, refused]));
        })();
    """
    done = subprocess.run([node, "-e", script, address, PROMPT, str(MOST)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected, expected, "n"]


def test_lm_evaluation_harness(live, address):
    """Its log-likelihoods through `/v1/completions` are those of the model, and its texts those of `generate`."""
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    lm = harness_client(address)
    pairs = [(PROMPT, " was wet and"), (PROMPT, " xyz"), ("Chapter 1.", " The morning came")]
    found = lm.loglikelihood([instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)])
    tokenizer = live.model.tokenizer
    for (before, after), (total, greedy) in zip(pairs, found, strict=True):
        ids, first = tokenizer(before + after)["input_ids"], len(tokenizer(before)["input_ids"])
        (scored,) = score_tokens(live.model, [ids], 1)
        assert total == pytest.approx(float(scored.logprobs[first - 1 :].sum()), abs=1e-4)
        assert greedy == bool(scored.greedy[first - 1 :].all())
    until = {"until": ["\n\n\n"], "max_gen_toks": MOST, "temperature": 0}
    (text,) = lm.generate_until([instance("generate_until", {}, (PROMPT, until), 0)])
    assert text == live.alone(PROMPT, MOST, temperature=0).text.split("\n\n\n")[0]


@pytest.mark.long
def test_lm_evaluation_harness_on_tasks(address):
    """Scores through `/v1/completions` are those of the harness's `hf` model (tests/harness_tasks.py)."""
    lm = harness_client(address)
    metrics, answers = evaluated(lm)
    expected = json.loads(SCORES.read_text())
    assert answers["texts"] == expected["answers"]["texts"]
    for task, values in expected["metrics"].items():
        assert metrics[task] == pytest.approx(values, rel=1e-5), task


def harness_client(address):
    completions = pytest.importorskip("lm_eval.models.openai_completions")
    return completions.LocalCompletionsAPI(
        model="demo", base_url=f"{address}/completions", tokenizer_backend="remote", max_length=200, batch_size=2
    )
