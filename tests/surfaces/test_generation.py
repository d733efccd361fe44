"""`generate` and `stream` over scripted runs: text, ends, interrupts, batches, journals."""

import inspect
import json
import pydoc
import sys
from types import SimpleNamespace

import pytest
from chatting import Chatting
from scripted import chunk, drafted, model, plain, play, prefilled, replay
from tokenizers_made_here import byte_level

import tokenswift_jax as ts
from tokenswift_jax.errors import NumericsError
from tokenswift_jax.request import Request

TEXT = " the cat and the dog 😀 naïve ✅ the end"


@pytest.fixture
def loaded(tmp_path):
    (tmp_path / "model").mkdir()
    return model(tmp_path / "model")


def test_generate_shows_and_takes_the_parameters_of_stream(loaded, monkeypatch):
    shown, hidden = inspect.signature(ts.generate), inspect.signature(ts.stream)
    assert shown.parameters == hidden.parameters
    assert list(shown.parameters)[:5] == ["model", "prompt", "sampling", "speculation", "max_new_tokens"]
    written = "max_new_tokens: 'int | Sequence[int] | None', min_new_tokens: 'int | Sequence[int] | None' = None"
    assert written in pydoc.render_doc(ts.generate)
    run = play(monkeypatch, prefilled(5))
    sampling, speculation = ts.SamplingConfig(seed=3), ts.SpeculationConfig(mode="ngram")
    by_name = {"speculation": speculation, "sampling": sampling, "prompt": [1], "model": loaded}
    for out in (
        ts.generate(loaded, [1], sampling, speculation, max_new_tokens=1),
        ts.generate(**by_name, max_new_tokens=1),
    ):
        assert (out.token_ids, out.seed, out.mode) == ([5], 3, "ngram")
        assert (run.asked["sampling"], run.asked["speculation"]) == (sampling, speculation)
    with pytest.raises(TypeError, match="max_new_tokens"):
        ts.generate(loaded, [1])


def ids_of(text):
    return byte_level()(text).input_ids


def test_text_ids_and_statistics_of_a_run(loaded, monkeypatch):
    ids = ids_of(TEXT)
    run = play(monkeypatch, prefilled(ids[0]), drafted(ids[1:4], ids[4:6]), plain(ids[6:]))
    out = ts.generate(loaded, "once", max_new_tokens=len(ids), capacity=64)
    assert (out.text, out.token_ids, out.finish_reason) == (TEXT, ids, "length")
    assert (out.prompt_tokens, out.generated_tokens) == (len(ids_of("once")), len(ids))
    assert (out.iterations, out.accepted_tokens, out.draft_depth) == (2 + len(ids[6:]), 3, 6)
    assert (out.compile_seconds, out.prefill_seconds, out.decode_seconds) == (2.0, 0.5, 1.0)
    assert (out.mode, out.seed, out.dtype, out.schedule_trace) == ("auto", 0, "float32", run.schedule_traces[0])
    assert run.closed
    assert run.asked["prompts"] == [ids_of("once")]
    assert (run.asked["max_new_tokens"], run.asked["capacity"]) == (len(ids), 64)


def test_sampling_comes_from_the_checkpoint_unless_given(tmp_path, monkeypatch):
    loaded = model(tmp_path, generation_config={"temperature": 0.5, "top_k": 7, "do_sample": True})
    run = play(monkeypatch, prefilled(5))
    ts.generate(loaded, [1], max_new_tokens=1)
    assert run.asked["sampling"] == ts.SamplingConfig(temperature=0.5, top_k=7)
    ts.generate(loaded, [1], ts.SamplingConfig(seed=4), max_new_tokens=1)
    assert run.asked["sampling"] == ts.SamplingConfig(seed=4)


def test_eos_is_in_the_ids_and_not_in_the_text(loaded, monkeypatch):
    ids = ids_of(" the cat")
    play(monkeypatch, prefilled(ids[0]), drafted([*ids[1:], 0, *ids]), plain(ids))
    out = ts.generate(loaded, "x", max_new_tokens=50)
    assert (out.text, out.token_ids, out.finish_reason) == (" the cat", [*ids, 0], "eos")
    assert out.accepted_tokens == len(ids) - 1, "the EOS is the one more"


def test_an_ignored_eos_ends_nothing(loaded, monkeypatch):
    ids = ids_of(" the cat")
    play(monkeypatch, prefilled(0), plain([*ids, 0]))
    out = ts.generate(loaded, "x", max_new_tokens=len(ids) + 2, ignore_eos=True)
    assert (out.text, out.finish_reason, out.generated_tokens) == (" the cat", "length", len(ids) + 2)


def cut_at(ids, text):
    """Fewest tokens whose text holds `text`."""
    return next(count for count in range(1, len(ids) + 1) if text in byte_level().decode(ids[:count]))


@pytest.mark.parametrize("stop", [" dog", "g 😀", ["zebra", "naï", "✅"], "cat and the d", " the cat and"])
@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_a_stop_string_wins_inside_any_chunk(loaded, monkeypatch, stop, size):
    ids = ids_of(TEXT)
    stops = [stop] if isinstance(stop, str) else stop
    end = min(TEXT.find(one) for one in stops if one in TEXT)
    count = min(cut_at(ids, one) for one in stops if one in TEXT)
    steps = [drafted(ids[at : at + size]) for at in range(1, len(ids), size)]
    # The chunk that completes the stop string goes on to an EOS: the stop comes first.
    run = play(monkeypatch, prefilled(ids[0]), *steps, chunk((0, 0, 0, 3)))
    out = ts.generate(loaded, "x", max_new_tokens=len(ids), stop=stop)
    assert (out.text, out.token_ids, out.finish_reason) == (TEXT[:end], ids[:count], "stop")
    assert out.generated_tokens == 1 + out.accepted_tokens + out.iterations
    assert run.closed


def test_a_stop_string_beats_the_cap_on_the_same_token(loaded, monkeypatch):
    ids = ids_of(" the cat")
    play(monkeypatch, prefilled(ids[0]), drafted(ids[1:]))
    assert ts.generate(loaded, "x", max_new_tokens=len(ids), stop="cat").finish_reason == "stop"


def test_events_add_up_and_tell_what_was_drafted(loaded, monkeypatch):
    ids = ids_of(TEXT)
    play(monkeypatch, prefilled(ids[0]), *[drafted(ids[at : at + 2], source=2) for at in range(1, len(ids), 2)])
    events = list(ts.stream(loaded, "x", max_new_tokens=len(ids)))
    assert "".join(event.text for event in events) == TEXT
    assert [token for event in events for token in event.token_ids] == ids
    drafts = [flag for event in events for flag in event.drafted]
    assert drafts == [False] + [at % 2 == 0 and at + 1 < len(ids) - 1 for at in range(len(ids) - 1)]
    assert [event.result is None for event in events] == [True] * (len(events) - 1) + [False]
    assert not any("�" in event.text for event in events)


def test_a_batch_gives_a_result_a_row_and_stops_rows_apart(loaded, monkeypatch):
    one, two = ids_of(" the cat and"), ids_of(" the dog and")
    steps = [[prefilled(one[0]), prefilled(two[0])], [plain(one[1:]), plain(two[1:])], [plain(one), plain(two)]]
    run = play(monkeypatch, *steps)
    sampling = ts.SamplingConfig(sequence=5)
    outs = ts.generate(loaded, ["x", [4]], sampling, max_new_tokens=len(two), stop="dog")
    assert [out.text for out in outs] == [" the cat and", " the "]
    assert [out.finish_reason for out in outs] == ["length", "stop"]
    assert [out.sequence for out in outs] == [5, 6]
    assert run.closed


def test_each_prompt_of_a_batch_may_have_its_own_stops(loaded, monkeypatch):
    ids = ids_of(" the cat and the dog")
    play(monkeypatch, [prefilled(ids[0])] * 3, [plain(ids[1:])] * 3)
    outs = ts.generate(loaded, ["x", "y", "z"], max_new_tokens=len(ids), stop=[["dog"], [], ("and", "zebra")])
    assert [out.text for out in outs] == [" the cat and the ", " the cat and the dog", " the cat "]
    assert [out.finish_reason for out in outs] == ["stop", "length", "stop"]


def test_a_single_prompt_in_a_list_is_a_batch_of_one(loaded, monkeypatch):
    play(monkeypatch, prefilled(5))
    assert len(ts.generate(loaded, [[4]], max_new_tokens=1)) == 1


def test_messages_go_through_the_chat_template_once(tmp_path, monkeypatch):
    tokenizer = Chatting()
    loaded = model(tmp_path, tokenizer=tokenizer)
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    run = play(monkeypatch, prefilled(5))
    out = ts.generate(loaded, messages=turns, max_new_tokens=1)
    text = "<user>the cat<assistant>sat"
    assert (out.token_ids, out.prompt_tokens) == ([5], len(ids_of(text)))
    assert (run.asked["prompts"], tokenizer.texts) == ([ids_of(text)], [text])
    assert [event.token_ids for event in ts.stream(loaded, messages=turns, max_new_tokens=1)] == [[5], []]


def test_conversations_are_a_batch(tmp_path, monkeypatch):
    loaded = model(tmp_path, tokenizer=Chatting())
    ask = [{"role": "user", "content": "the cat"}]
    run = play(monkeypatch, [prefilled(5), prefilled(6)])
    outs = ts.generate(loaded, messages=[ask, [*ask, *ask]], max_new_tokens=1)
    assert [out.token_ids for out in outs] == [[5], [6]]
    assert run.asked["prompts"] == [ids_of("<user>the cat"), ids_of("<user>the cat<user>the cat")]
    run = play(monkeypatch, prefilled(5))
    assert len(ts.generate(loaded, messages=[ask], max_new_tokens=1)) == 1


@pytest.mark.parametrize("thrown_in", [False, True])
def test_an_interrupt_keeps_text_and_statistics(loaded, monkeypatch, thrown_in):
    ids = ids_of(" the cat 😀")
    kept = ids[:-1]  # ends inside the emoji: what was held back comes out at the end
    script = [prefilled(ids[0]), drafted(kept[1:])] + ([] if thrown_in else [KeyboardInterrupt()])
    run = play(monkeypatch, *script, plain([7]))
    events = ts.stream(loaded, "x", max_new_tokens=50, stop="zzz")
    if thrown_in:
        seen = [next(events), next(events)]
        seen.append(events.throw(KeyboardInterrupt()))
    else:
        seen = list(events)
    result = seen[-1].result
    assert (result.finish_reason, result.token_ids) == ("interrupted", kept)
    assert result.text == "".join(event.text for event in seen) == byte_level().decode(kept)
    assert run.closed


def test_not_a_number_comes_after_the_text_before_it(loaded, monkeypatch, tmp_path):
    run = play(monkeypatch, prefilled(7), plain([8, 9]), NumericsError(5))
    events = ts.stream(loaded, [1], max_new_tokens=50, journal=tmp_path / "j")
    assert [next(events).token_ids, next(events).token_ids] == [[7], [8, 9]]
    with pytest.raises(NumericsError, match="position 5"):
        next(events)
    assert run.closed
    assert len((tmp_path / "j").read_text().splitlines()) == 3


def test_without_a_tokenizer_there_are_only_ids(tmp_path, monkeypatch):
    play(monkeypatch, prefilled(5), plain([6]))
    out = ts.generate(model(tmp_path, tokenizer=None), [1, 2], max_new_tokens=2)
    assert (out.text, out.token_ids) == ("", [5, 6])


def test_every_kill_resumes_to_the_same_result(loaded, monkeypatch, tmp_path):
    ids = ids_of(TEXT)
    replay(monkeypatch, ids)
    whole = ts.generate(loaded, "x", max_new_tokens=len(ids), journal=tmp_path / "whole")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines) + 1):
        (tmp_path / "torn").write_bytes(b"".join(lines[:kept]) + b'{"at": 3, "tok')
        begun = replay(monkeypatch, ids)
        events = list(ts.stream(loaded, "x", max_new_tokens=len(ids), journal=tmp_path / "torn", resume=True))
        out = events[-1].result
        assert "".join(event.text for event in events) == TEXT, "the journal's part is given out again"
        same = (
            "text",
            "token_ids",
            "finish_reason",
            "accepted_tokens",
            "iterations",
            "accepted_per_position",
            "latency",
        )
        assert [getattr(out, name) for name in same] == [getattr(whole, name) for name in same]
        assert begun == ([] if kept == len(lines) else [0 if kept == 1 else 1 + 3 * (kept - 2)])
        if kept < len(lines):
            assert (tmp_path / "torn").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_journal_may_be_extended_and_cut(loaded, monkeypatch, tmp_path):
    ids = ids_of(TEXT)
    replay(monkeypatch, ids)
    assert ts.generate(loaded, "x", max_new_tokens=8, journal=tmp_path / "j").token_ids == ids[:8]
    longer = ts.generate(loaded, "x", max_new_tokens=len(ids), journal=tmp_path / "j", resume=True)
    assert (longer.text, longer.finish_reason) == (TEXT, "length")
    shorter = ts.generate(loaded, "x", max_new_tokens=5, journal=tmp_path / "j", resume=True)
    assert (shorter.token_ids, shorter.finish_reason) == (ids[:5], "length")


def test_resume_without_a_file_begins_one(loaded, monkeypatch, tmp_path):
    begun = replay(monkeypatch, [5, 6])
    ts.generate(loaded, "x", max_new_tokens=2, journal=tmp_path / "j", resume=True)
    assert begun == [0]
    assert (tmp_path / "j").exists()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sampling": ts.SamplingConfig(seed=1)}, r"sampling\.seed"),
        ({"stop": "z"}, "stop"),
        ({"ignore_eos": True}, "eos"),
        ({"min_new_tokens": 1}, "min_new_tokens"),
    ],
)
def test_a_journal_of_another_run_is_refused(loaded, monkeypatch, tmp_path, change, field):
    replay(monkeypatch, [5, 6, 7])
    ts.generate(loaded, "x", max_new_tokens=2, journal=tmp_path / "j")
    with pytest.raises(ts.UserError, match=field):
        ts.generate(loaded, "x", **{"max_new_tokens": 3, "journal": tmp_path / "j", "resume": True, **change})


def test_the_trace_is_whole_after_a_resume(loaded, monkeypatch, tmp_path):
    replay(monkeypatch, [5, 6, 7, 8])
    ts.generate(loaded, "x", max_new_tokens=2, journal=tmp_path / "j")
    out = ts.generate(loaded, "x", max_new_tokens=4, journal=tmp_path / "j", resume=True)
    assert out.schedule_trace == [{"from_token": 1, "mode": "tokenswift"}], "the same plan goes on"
    header, first, *_ = map(json.loads, (tmp_path / "j").read_text().splitlines())
    assert first["schedule_trace"] == out.schedule_trace
    assert "max_new_tokens" not in header


def test_the_audit_is_asked_about_the_finished_text(loaded, monkeypatch):
    asked = []

    def audit(*arguments):
        asked.append(arguments)
        return SimpleNamespace(positions=2, mismatches=1, max_margin=0.5, failed=True)

    monkeypatch.setitem(sys.modules, "tokenswift_jax.audit.replay", SimpleNamespace(audit=audit))
    play(monkeypatch, prefilled(5), plain([6]))
    sampling = ts.SamplingConfig(sequence=3)
    out = ts.generate(loaded, [1], sampling, max_new_tokens=2, min_new_tokens=1, ignore_eos=True, audit=True)
    assert asked == [(loaded, Request([1], sampling, 2, 1, ()), [5, 6])]
    assert out.audit == {"positions": 2, "mismatches": 1, "max_margin": 0.5}
    assert out.audit_failed
    assert "audit_failed" not in out.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2, "min_new_tokens": 3}, "min_new_tokens 3 is above"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"stop": ["a", ""]}, "stop string"),
        ({"resume": True}, "resume=True without journal: name"),
        ({"prompt": ["a", "b"], "journal": "j"}, "one prompt"),
        ({"prompt": ""}, "empty"),
        ({"prompt": None}, "a prompt is missing; give one of prompt and messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, "prompt and messages exclude each other"),
        ({"prompt": None, "messages": [{"role": "user", "content": "x"}]}, "no chat template; give text without"),
        ({"prompt": None, "messages": [{"role": "user"}]}, 'turn 1 of the messages has no "content"'),
        ({"prompt": []}, "empty"),
        ({"prompt": [400]}, r"token id 400 .* 0\.\.399"),
        ({"prompt": [-1]}, "token id -1"),
        ({"prompt": 5}, "not int"),
        ({"prompt": [1, True]}, "a prompt is a string or a list of token ids, and True is no token id"),
        ({"sampling": ts.SamplingConfig(suppress_tokens=(400,))}, "outside the vocabulary"),
    ],
)
def test_wrong_arguments_raise_at_once_and_start_nothing(loaded, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    run = play(monkeypatch, prefilled(5))
    with pytest.raises(ts.UserError, match=message):
        ts.stream(loaded, **{"prompt": "x", "max_new_tokens": 4, **arguments})
    assert not run.asked
    assert not (tmp_path / "j").exists()
