"""The repetition guard: its rule against the plainest search; texts end at one token however they come."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scripted import chunk, drafted, model, plain, play, prefilled

import tokenswift_jax as ts
from tokenswift_jax.cli.generate import main
from tokenswift_jax.text.repetition import Loop, RepetitionGuard, first_loop


def looping(tokens, period):
    """The rule, word for word: at least 3 copies and 48 tokens at the end of the text."""
    length = max(3 * period, 48)
    return len(tokens) >= length and all(
        tokens[place] == tokens[place - period] for place in range(len(tokens) - length + period, len(tokens))
    )


def searched(tokens):
    """Every loop: the first prefix for which the rule is true, and again after each break."""
    found, known = [], None
    for end in range(1, len(tokens) + 1):
        if known is not None and tokens[end - 1] == tokens[end - 1 - known]:
            continue
        known = None
        for period in range(1, 129):
            if looping(tokens[:end], period):
                start = end - period
                while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
                    start -= 1
                found.append(Loop(start, period, end))
                known = period
                break
    return found


@st.composite
def texts(draw):
    """Pieces of noise and of loops, some of them with a fault in the middle."""
    tokens = []
    for _ in range(draw(st.integers(1, 3))):
        tokens += draw(st.lists(st.integers(0, 3), max_size=12))
        unit = draw(st.lists(st.integers(0, 3), min_size=1, max_size=draw(st.sampled_from([3, 17, 40]))))
        count = draw(st.integers(40, 130))
        tokens += (unit * (count // len(unit) + 1))[:count]
    return tokens


@given(tokens=texts(), cuts=st.lists(st.integers(0, 400), max_size=6))
@example(tokens=[1] * 49, cuts=[])
@example(tokens=[1] * 47 + [2] + [1] * 48, cuts=[47, 48])
@example(tokens=[*range(128)] * 3, cuts=[383])
@example(tokens=[*range(129)] * 4, cuts=[])
@example(tokens=[0, *[5, 6, 7, 5, 6, 8] * 9, 5, 6, 7, 5, 6, 7, *[5, 6, 7] * 17], cuts=[])
def test_the_guard_finds_what_a_search_finds_however_the_text_is_cut(tokens, cuts):
    guard, found = RepetitionGuard(), []
    borders = sorted({min(cut, len(tokens)) for cut in cuts} | {len(tokens)})
    for border in borders:
        while guard.seen < border:
            loop = guard.scan(np.asarray(tokens[guard.seen : border]))
            found += [] if loop is None else [loop]
            assert loop is not None or guard.seen == border
    assert found == searched(tokens)
    assert first_loop(tokens) == (found[0] if found else None)


def test_a_text_longer_than_a_slice():
    tokens = [*np.random.default_rng(0).integers(0, 10**6, 1500).tolist(), *[3, 4, 5] * 30]
    assert first_loop(tokens) == Loop(1500, 3, 1548)


LOOP = [7, 8, 9, 10, 11] * 30
IDS = [21, 22, *LOOP]


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    return model(tmp_path / "model", eos_token_ids=(0,))


@pytest.mark.parametrize("size", [1, 3, 49, 150])
def test_a_text_ends_at_the_same_token_however_it_comes(loaded, monkeypatch, size):
    """The 50th token, in the middle of a run or not; without the option nothing ends it."""
    rest = [IDS[at : at + size] for at in range(1, len(IDS), size)]
    for kind in (plain, lambda run: drafted(run)):
        play(monkeypatch, prefilled(IDS[0]), *map(kind, rest))
        out = ts.generate(loaded, "x", max_new_tokens=len(IDS), stop_on_repetition=True)
        assert (out.token_ids, out.finish_reason) == (IDS[:50], "repetition")
        assert out.text == loaded.tokenizer.decode(IDS[:50])
    play(monkeypatch, prefilled(IDS[0]), *map(plain, rest))
    assert ts.generate(loaded, "x", max_new_tokens=len(IDS)).finish_reason == "length"


def test_other_ends_at_the_same_token_come_first(loaded, monkeypatch):
    play(monkeypatch, prefilled(IDS[0]), plain(IDS[1:]))
    assert ts.generate(loaded, "x", max_new_tokens=50, stop_on_repetition=True).finish_reason == "length"
    play(monkeypatch, prefilled(0))
    assert ts.generate(loaded, "x", max_new_tokens=50, stop_on_repetition=True).finish_reason == "eos"


def test_each_row_of_a_batch_has_its_own_guard(loaded, monkeypatch):
    play(monkeypatch, [prefilled(IDS[0])] * 2, [plain(IDS[1:])] * 2, [chunk(), chunk()])
    outs = ts.generate(loaded, ["x", "y"], max_new_tokens=len(IDS), stop_on_repetition=[True, False])
    assert [out.finish_reason for out in outs] == ["repetition", "length"]
    with pytest.raises(ts.UserError, match="stop_on_repetition is 'no'; it must be True or False"):
        ts.generate(loaded, "x", max_new_tokens=3, stop_on_repetition="no")


def test_a_resumed_text_ends_there_too_and_goes_on_without_the_option(loaded, monkeypatch):
    play(monkeypatch, prefilled(IDS[0]), plain(IDS[1:40]), KeyboardInterrupt())
    cut = ts.generate(loaded, "x", max_new_tokens=len(IDS), journal="j", stop_on_repetition=True)
    assert cut.finish_reason == "interrupted"
    play(monkeypatch, plain(IDS[40:]))
    ended = ts.generate(loaded, "x", max_new_tokens=len(IDS), journal="j", resume=True, stop_on_repetition=True)
    assert (ended.token_ids, ended.finish_reason) == (IDS[:50], "repetition")
    again = ts.generate(loaded, max_new_tokens=len(IDS), journal="j", resume=True, stop_on_repetition=True)
    assert (again.token_ids, again.finish_reason) == (IDS[:50], "repetition")
    play(monkeypatch, plain(IDS[50:]))
    longer = ts.generate(loaded, max_new_tokens=len(IDS), journal="j", resume=True)
    assert (longer.token_ids, longer.finish_reason) == (IDS, "length")


def test_the_command_says_where_the_loop_begins(loaded, monkeypatch, capsys):
    from tokenswift_jax import model as model_module

    monkeypatch.setattr(model_module, "load", lambda *_, **__: loaded)
    play(monkeypatch, prefilled(IDS[0]), plain(IDS[1:]))
    assert main(["--model", "m", "--prompt", "x", "--max-new-tokens", "99", "--stop-on-repetition"]) == 0
    assert "ended by a repetition: 5 tokens, again and again from token 3 on" in capsys.readouterr().err
