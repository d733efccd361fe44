"""Incremental text equals whole text, never breaks a character, and costs the same for every token."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers_made_here import END, byte_level, metaspace

from tokenswift_jax.text.detokenizer import Detokenizer

TEXT = st.text(st.sampled_from("the cat. 😀✅é日"), max_size=30)


def pieces(tokenizer, ids, prompt=()):
    detokenizer = Detokenizer(tokenizer, prompt)
    given_out = [detokenizer.push(token) for token in ids]
    return [*given_out, detokenizer.flush()]


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("make", [byte_level, metaspace])
@settings(max_examples=150, deadline=None)
@example(text="日" * 30, cut=0)  # a byte-level tokenizer's tokens may all end inside a character
@given(text=TEXT, cut=st.integers(0, 30))
def test_pieces_make_the_whole_text_and_hold_whole_characters(make, text, cut):
    tokenizer = make()
    ids = tokenizer(text).input_ids
    # Cut the ids where the prompt ends with a whole character: what follows is then plainly the rest of the text.
    while cut < len(ids) and "�" in decode(tokenizer, ids[:cut]):
        cut += 1
    prompt, rest = ids[:cut], ids[cut:]
    out = pieces(tokenizer, rest, prompt)
    assert "".join(out) == decode(tokenizer, ids)[len(decode(tokenizer, prompt)) :]
    assert "�" not in "".join(out)


@settings(max_examples=300, deadline=None)
@example(ids=[173, 103, 103, 128, 128])
@given(ids=st.lists(st.sampled_from(byte_level()(chr(0xE9) + "😀 ✅a").input_ids + list(range(150, 200))), max_size=24))
def test_broken_bytes_come_out_as_the_whole_decode_writes_them(ids):
    assert "".join(pieces(byte_level(), ids)) == decode(byte_level(), ids)


def test_a_character_waits_for_its_last_byte():
    ids = metaspace()("a😀").input_ids
    assert len(ids) == 5
    assert pieces(metaspace(), ids) == ["a", "", "", "", "😀", ""]


def test_a_character_that_never_ends_comes_out_broken_at_the_end():
    ids = metaspace()("a😀").input_ids[:-1]
    assert pieces(metaspace(), ids) == ["a", "", "", "", "�"]


def test_the_space_of_a_first_word_depends_on_the_text_before_it():
    the, cat = (metaspace().convert_tokens_to_ids(word) for word in ("▁the", "▁cat"))
    assert pieces(metaspace(), [cat]) == ["cat", ""]
    assert pieces(metaspace(), [cat], prompt=[the]) == [" cat", ""]
    assert pieces(metaspace(), [0, cat, 0, 0, cat], prompt=[the]) == ["", " cat", "", "", " cat", ""]


def test_a_prompt_may_end_inside_a_character():
    ids = byte_level()("日").input_ids
    ids = [byte_level().convert_tokens_to_ids(piece) for piece in ("æ", "Ĺ", "¥")] if len(ids) == 1 else ids
    assert decode(byte_level(), ids) == "日"
    letter = byte_level()("a").input_ids
    assert "".join(pieces(byte_level(), ids[1:] + letter, prompt=letter + ids[:1])) == "日a"


def test_a_long_prompt_of_byte_pieces_is_entered_at_a_character():
    ids = metaspace()("😀" * 5).input_ids
    smile = ids[-4:]
    for extra in range(4):
        tail = metaspace()("日" * extra).input_ids[1:]
        assert pieces(metaspace(), smile, prompt=ids + tail) == ["", "", "", "😀", ""]


def test_bytes_that_the_prompt_left_unfinished_are_completed_or_dropped():
    smile, cat = metaspace()("😀").input_ids[1:], metaspace().convert_tokens_to_ids("▁cat")
    assert pieces(metaspace(), smile[2:], prompt=[cat, *smile[:2]]) == ["", "😀", ""]
    assert pieces(metaspace(), [cat], prompt=[cat, *smile[:2]]) == [" cat", ""]
    assert pieces(metaspace(), [smile[0], cat, *smile, cat]) == ["", "� cat", "", "", "", "😀", " cat", ""]


def test_special_tokens_give_no_text():
    assert byte_level().convert_tokens_to_ids(END) == 0
    assert "".join(pieces(byte_level(), [0, *byte_level()("the").input_ids, 0])) == "the"


class Counting:
    """Notes how many tokens are decoded at a time."""

    def __init__(self, tokenizer):
        self.tokenizer, self.longest, self.calls = tokenizer, 0, 0
        self.convert_tokens_to_ids = tokenizer.convert_tokens_to_ids

    def decode(self, ids, **options):
        self.longest, self.calls = max(self.longest, len(ids)), self.calls + 1
        return self.tokenizer.decode(ids, **options)


@pytest.mark.parametrize("endless", ["text", "broken", "special"])
def test_a_token_costs_the_same_however_long_the_text(endless):
    broken = byte_level()("é").input_ids[-1:] if endless == "broken" else []
    ids = {"text": byte_level()("the cat 😀").input_ids * 100, "broken": broken * 500, "special": [0] * 500}[endless]
    tokenizer = Counting(byte_level())
    pieces(tokenizer, ids, prompt=ids)
    assert tokenizer.longest <= 17
    assert tokenizer.calls <= 2 * len(ids) + 8
