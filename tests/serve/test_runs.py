"""`/v1/runs`: followed, paused, continued beyond their limit, branched, downloaded, listed to their owners."""

import json
import shlex
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from live import PROMPT, Live, begin, ended, follow, state, text, until
from live import RUNS as PATH

from tokenswift_jax import checkpoint, stats
from tokenswift_jax.cli.generate import main
from tokenswift_jax.scoring import score_tokens
from tokenswift_jax.text.repetition import first_loop

pytest.importorskip("starlette")
from tokenswift_jax.serve.run import RunState


def test_a_page_after_a_run_that_is_gone(live):
    gone = begin(live, 2)
    live.send(f"{PATH}/{gone}", method="DELETE")
    for after in (gone, "zzz", ""):
        status, _, answer = live.send(f"{PATH}?after={after}")
        assert (status, answer["error"]["param"]) == (400, "after")


def test_a_run_writes_the_text_of_generate_without_anyone(live):
    run_id = begin(live, seed=4, name="A road")
    run = ended(live, run_id)
    expected = live.alone(PROMPT, 60, seed=4)
    assert (run["finish_reason"], run["tokens"], run["settings"]["seed"]) == ("length", 60, 4)
    assert text(live, run_id) == expected.text
    seen, events = follow(live, run_id)
    assert seen == expected.text
    assert [token for event in events for token in event["token_ids"]] == expected.token_ids
    listed = live.send(PATH)[2]["data"]
    assert (listed[0]["id"], listed[0]["name"], listed[0]["tokens"]) == (run_id, "A road", 60)


def test_a_reader_comes_back(live):
    """The header that browsers send names the last event; the rest follows."""
    run_id = begin(live, 120, seed=4)
    _, _, content = live.send(f"{PATH}/{run_id}/events")
    ids = [int(line[4:]) for line in content.decode().split("\n") if line.startswith("id: ")]
    assert ids[:-1] == list(range(len(ids) - 1))
    whole = follow(live, run_id)[1]
    for after in (0, 1, ids[-1]):
        _, _, content = live.send(f"{PATH}/{run_id}/events", headers={"last-event-id": str(after)})
        rest = [json.loads(line[6:]) for line in content.decode().split("\n") if line.startswith("data: ")]
        assert rest == whole[len(whole) - len(rest) :]
        assert len(rest) == sum(number > after for number in ids)


def test_pause_resume_and_cancel(live):
    """A paused run has no slot; it goes on to the same text. Its events keep their numbers."""
    run_id = begin(live, 180, seed=5)
    until(lambda: state(live, run_id)["tokens"] > 10, "it does not begin")
    paused = live.post(f"{PATH}/{run_id}/pause")
    assert paused["state"] == "paused"
    live.emptied()
    assert state(live, run_id)["tokens"] == paused["tokens"] < 180
    assert live.post(f"{PATH}/{run_id}/resume")["state"] in ("queued", "prefill", "running")
    assert live.send(f"{PATH}/{run_id}/resume", {})[0] == 409
    ended(live, run_id)
    seen, events = follow(live, run_id)
    assert seen == live.alone(PROMPT, 180, seed=5).text
    assert "paused" in [event["state"] for event in events]
    other = begin(live, 180, seed=6)
    until(lambda: state(live, other)["tokens"] > 10, "it does not begin")
    cancelled = live.post(f"{PATH}/{other}/cancel")
    assert (cancelled["state"], cancelled["finish_reason"]) == ("cancelled", "cancelled")
    assert live.send(f"{PATH}/{other}/pause", {})[0] == 409
    assert text(live, other) == follow(live, other)[0]


@pytest.mark.parametrize("before", ["finished", "paused", "cancelled"])
def test_a_run_goes_on_to_a_larger_limit(live, before):
    run_id = begin(live, 150 if before != "finished" else 33, seed=7)
    if before == "finished":
        ended(live, run_id)
    else:
        until(lambda: state(live, run_id)["tokens"], "it does not begin")
        live.post(f"{PATH}/{run_id}/{ {'paused': 'pause', 'cancelled': 'cancel'}[before] }")
    seen, _ = follow(live, run_id) if before != "paused" else ("", [])
    longer = live.post(f"{PATH}/{run_id}/continue", max_tokens=170)
    assert longer["max_tokens"] == 170
    assert ended(live, run_id)["tokens"] == 170
    expected = live.alone(PROMPT, 170, seed=7).text
    assert follow(live, run_id)[0] == text(live, run_id) == expected
    assert expected.startswith(seen.rstrip("�"))
    assert live.send(f"{PATH}/{run_id}/continue", {"max_tokens": 170})[0] == 400
    assert live.send(f"{PATH}/{run_id}/continue", {"max_tokens": 10**6})[0] == 400


def test_branches(live):
    """With the parent's settings a branch writes the parent's text; another seed gives another text from there on; a
    chosen token comes before that."""
    expected = live.alone(PROMPT, 60, seed=8)
    run_id = begin(live, seed=8)
    ended(live, run_id)
    tokens = expected.token_ids
    for changed in ({}, {"seed": 9}, {"temperature": 0.0}, {"append": [17, 18]}):
        status, _, made = live.send(f"{PATH}/{run_id}/branch", {"at": 25, **changed})
        assert status == 201, made
        assert (made["parent"], made["branched_at"]) == (run_id, 25)
        ended(live, made["id"])
        ids = [token for event in follow(live, made["id"])[1] for token in event["token_ids"]]
        assert len(ids) == 60
        assert ids[:25] == tokens[:25]
        assert ids[25:27] == [17, 18] if "append" in changed else True
        assert (ids == tokens) == (not changed)
    again = live.send(f"{PATH}/{run_id}/branch", {"at": 25, "append": tokens[25:30]})[2]["id"]
    ended(live, again)
    assert text(live, again) == expected.text
    for wrong in ({"at": 61}, {"at": -1}, {}, {"at": 60}, {"at": 1, "append": [10**6]}, {"at": 1, "top_p": 7}):
        assert live.send(f"{PATH}/{run_id}/branch", wrong)[0] == 400
    whole = {"at": 1, "suppress_tokens": list(range(live.model.config.vocab_size))}
    assert live.send(f"{PATH}/{run_id}/branch", whole)[0] == 400
    live.emptied()


def test_downloads(live):
    run_id = begin(live, 20, seed=8, name="One\n# Two")
    ended(live, run_id)
    expected = live.alone(PROMPT, 20, seed=8)
    assert live.send(f"{PATH}/{run_id}/text.md")[2].decode().startswith("# One # Two\n\n<!-- seed 8")
    status, headers, content = live.send(f"{PATH}/{run_id}/text.jsonl?logprobs=2")
    assert status == 200
    assert headers["content-disposition"] == f'attachment; filename="{run_id}.jsonl"'
    first, *lines = map(json.loads, content.decode().splitlines())
    assert first["settings"]["seed"] == 8
    assert [line["token_id"] for line in lines] == expected.token_ids
    assert {line["source"] for line in lines} <= {"target", "head", "ngram"}
    prompt = live.model.tokenizer(PROMPT)["input_ids"]
    (scored,) = score_tokens(live.model, [prompt + expected.token_ids], 2)
    np.testing.assert_allclose([line["logprob"] for line in lines], scored.logprobs[len(prompt) - 1 :], rtol=1e-4)
    assert all(len(line["top"]) == 2 for line in lines)
    assert live.send(f"{PATH}/{run_id}/text.pdf")[0] == 400


def test_runs_belong_to_the_key_that_made_them(live):
    run = live.send(PATH, {"prompt": PROMPT, "max_tokens": 2}, headers={"x-api-key": "mine"})[2]
    assert [each["id"] for each in live.send(PATH, headers={"x-api-key": "mine"})[2]["data"]] == [run["id"]]
    for path in ("", "/events", "/text.txt"):
        assert live.send(f"{PATH}/{run['id']}{path}", headers={"x-api-key": "theirs"})[0] == 404
    for verb in ("pause", "resume", "cancel", "continue", "branch"):
        assert live.send(f"{PATH}/{run['id']}/{verb}", {}, headers={"x-api-key": "theirs"})[0] == 404
    assert live.send(f"{PATH}/{run['id']}", method="DELETE", headers={"x-api-key": "mine"})[0] == 200
    assert not list(live.service.store.folder.glob(run["id"]))
    assert live.send(f"{PATH}/{run['id']}", headers={"x-api-key": "mine"})[0] == 404


def test_runs_of_another_server(tmp_path):
    """After a restart a paused run is still paused, a run goes on, and the numbers of events are as they were."""
    first = Live(tmp_path / "state").start()
    paused, running = begin(first, 150, seed=5), begin(first, 190, seed=6)
    until(lambda: state(first, paused)["tokens"], "it does not begin")
    first.post(f"{PATH}/{paused}/pause")
    first.stop()
    second = Live(tmp_path / "state").start()
    assert state(second, paused)["state"] == "paused"
    ended(second, running)
    assert text(second, running) == second.alone(PROMPT, 190, seed=6).text
    second.post(f"{PATH}/{paused}/resume")
    ended(second, paused)
    assert follow(second, paused)[0] == second.alone(PROMPT, 150, seed=5).text
    second.stop()


def test_a_run_is_found_after_a_change_of_end_ids_and_draft_heads(live, monkeypatch):
    store = live.service.store
    with monkeypatch.context() as earlier:  # a version whose hash covered the heads
        earlier.setattr(store, "fingerprint", checkpoint.fingerprint(live.model.path))
        old = begin(live, 4)
        ended(live, old)
    new = begin(live, 4)
    ended(live, new)
    monkeypatch.setattr(store, "_model", replace(live.model, eos_token_ids=(3,)))
    for run_id in (old, new):
        found = store.load(run_id)
        assert found is not None
        assert len(found.run.tokens) == 4


LOOPING = {"temperature": 0.0, "repetition_penalty": 1.0}


def looping(live, how, **settings):
    """A greedy text of the demo, which soon repeats itself, and the loop."""
    run_id = begin(live, 120, **LOOPING, on_repetition=how, **settings)
    until(lambda: state(live, run_id)["state"] in ("paused", "finished"), "it does not end")
    loop = first_loop(live.alone(PROMPT, 120, **LOOPING).token_ids)
    return run_id, loop


def test_a_loop_pauses_or_ends_a_run_at_its_own_token(live):
    """The place depends on the text alone; a run that is resumed goes on within the same loop."""
    expected = live.alone(PROMPT, 120, **LOOPING)
    run_id, loop = looping(live, "pause")
    run = state(live, run_id)
    assert (run["state"], run["tokens"], run["finish_reason"]) == ("paused", loop.end, None)
    assert run["loops"] == [{"start": loop.start, "period": loop.period, "end": loop.end}]
    live.emptied()
    made = live.send(f"{PATH}/{run_id}/branch", {"at": loop.start, "temperature": 1.0, "seed": 3})[2]
    assert made["settings"]["on_repetition"] == "pause"
    live.send(f"{PATH}/{made['id']}", method="DELETE")
    live.post(f"{PATH}/{run_id}/resume")
    assert ended(live, run_id)["finish_reason"] == "length"
    assert text(live, run_id) == follow(live, run_id)[0] == expected.text
    assert [each for event in follow(live, run_id)[1] for each in event["loops"]] == run["loops"]
    end_id, _ = looping(live, "end")
    run = state(live, end_id)
    assert (run["state"], run["tokens"], run["finish_reason"]) == ("finished", loop.end, "repetition")
    assert live.send(f"{PATH}/{end_id}/continue", {"max_tokens": 130})[0] == 409
    off_id, _ = looping(live, "off")
    run = state(live, off_id)
    assert (run["tokens"], run["finish_reason"], len(run["loops"])) == (120, "length", 1)
    assert live.send(PATH, {"prompt": PROMPT, "on_repetition": "stop"})[0] == 400


def test_a_run_paused_at_a_loop_is_paused_after_a_restart_and_goes_on_once_it_has_been_resumed(live):
    store = live.service.store
    run_id, loop = looping(live, "pause")
    stored = live.service.known(run_id)
    description = store.folder / run_id / "run.json"
    whole = json.loads(description.read_text())
    assert whole["state"] == "paused"
    stored.run.journal.close()
    description.write_text(json.dumps(whole | {"state": "active"}))  # killed before it was written
    loaded = store.load(run_id)
    assert (loaded.run.state, len(loaded.run.tokens)) == ("paused", loop.end)
    loaded.run.journal.close()
    loaded.pass_loop()
    loaded.run.state = RunState.QUEUED
    store.save(loaded)  # killed before its next token
    loaded = store.load(run_id)
    assert loaded.run.state == "queued"
    loaded.run.journal.close()


def test_events_place_each_token_in_the_text_and_count_what_was_drafted(live):
    run_id = begin(live, seed=4)
    ended(live, run_id)
    expected = live.alone(PROMPT, 60, seed=4)
    seen, events = follow(live, run_id)
    widths = [width for event in events for width in event["widths"]]
    assert (len(widths), sum(widths)) == (60, len(expected.text))
    places = np.cumsum([0, *widths])
    texts = [live.model.tokenizer.decode([token]) for token in expected.token_ids]
    assert [seen[a:b] for a, b in pairwise(places)] == texts
    iterations = [pair for event in events for pair in event["iterations"]]
    assert sum(count for count, _ in iterations) == 60
    log = live.service.known(run_id).run.log
    assert stats.acceptance(log)["draft_depth"] == sum(offered for _, offered in iterations)
    assert stats.acceptance(log)["accepted_tokens"] == sum(count - 1 for count, _ in iterations)


def test_the_probabilities_of_a_token(live):
    run_id = begin(live, 20, seed=8)
    ended(live, run_id)
    lines = live.send(f"{PATH}/{run_id}/text.jsonl?logprobs=3")[2].decode().splitlines()[1:]
    for at in (7, 0, 19):
        line, found = json.loads(lines[at]), live.send(f"{PATH}/{run_id}/tokens/{at}?top=3")[2]
        assert (found["index"], found["token_id"], found["text"]) == (at, line["token_id"], line["text"])
        assert (found["source"], found["logprob"]) == (line["source"], line["logprob"])
        assert [[each["token_id"], each["logprob"]] for each in found["top"]] == line["top"]
    for wrong, status in (("tokens/20", 404), ("tokens/-1", 404), ("tokens/x", 404), ("tokens/1?top=99", 400)):
        assert live.send(f"{PATH}/{run_id}/{wrong}")[0] == status


@pytest.mark.parametrize("asked", [{"seed": 4}, {"temperature": 0.0, "stop": ["the"], "min_p": 0.0}])
def test_the_command_of_a_run_writes_its_text(live, asked, capsys):
    run_id = begin(live, 30, **asked)
    ended(live, run_id)
    line = live.send(f"{PATH}/{run_id}/command")[2]
    assert line["prompt"] == PROMPT
    program, *flags = shlex.split(line["command"].removeprefix("python -m "))
    assert program == "tokenswift_jax.generate"
    assert main([*flags, "--quiet", "--mode", "autoregressive"]) == 0
    assert capsys.readouterr().out == text(live, run_id)
    made = live.send(f"{PATH}/{run_id}/branch", {"at": 3})[2]
    assert live.send(f"{PATH}/{made['id']}/command")[2]["command"] is None
