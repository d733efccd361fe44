"""A journal that an earlier version wrote, before the engine, resumes to the text that plain decoding gives now.

tests/data/journals/f44719e.jsonl is of commit f44719e, killed in its third chunk: `python -m tokenswift_jax.generate
--prompt "It was late in the autumn" --max-new-tokens 64 --mode tokenswift --schedule fused --seed 5 --journal FILE`.
"""

import json
import shutil
from pathlib import Path

import jax
import pytest

from tokenswift_jax.cli.generate import main

FILE = Path(__file__).resolve().parents[1] / "data" / "journals" / "f44719e.jsonl"
PROMPT = "It was late in the autumn"


@pytest.fixture(autouse=True)
def same_cache():
    """The command sets a folder for compiled programs."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("prompt", [[], ["--prompt", PROMPT]])
def test_it_resumes_to_the_text_of_plain_decoding(tmp_path, prompt, capsys):
    journal, stats = tmp_path / "journal", tmp_path / "stats.json"
    shutil.copyfile(FILE, journal)
    words = ["--mode", "autoregressive", "--max-new-tokens", "64", "--quiet"]
    seeded = ["--seed", "5"] if prompt else []  # without one, the journal has the seed too
    assert main([*words, *prompt, *seeded, "--journal", str(journal), "--resume", "--stats", str(stats)]) == 0
    resumed = capsys.readouterr().out
    assert main([*words, "--prompt", PROMPT, "--seed", "5"]) == 0
    assert resumed == capsys.readouterr().out
    found = json.loads(stats.read_text())
    kept = [json.loads(line) for line in FILE.read_text().splitlines()[1:3]]
    before = [token for record in kept for token in record["token_ids"]]
    assert found["token_ids"][: len(before)] == before
    assert len(found["token_ids"]) == 64
    assert found["accepted_tokens"] > 0  # of the earlier run's drafts
    modes = [(entry["from_token"], entry["mode"]) for entry in found["schedule_trace"]]
    assert modes == [(1, "tokenswift"), (len(before), "autoregressive")]
