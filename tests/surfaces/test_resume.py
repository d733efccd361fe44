"""The parts of a journal that a resumed run uses, so that later changes around it change nothing."""

import json
import os
import subprocess
import sys
from dataclasses import replace as replaced
from pathlib import Path

import pytest
from chatting import Chatting
from scripted import model, plain, play, prefilled, replay
from tokenizers_made_here import byte_level

import tokenswift_jax as ts
from tokenswift_jax import checkpoint
from tokenswift_jax import model as model_module
from tokenswift_jax.cli.generate import main

IDS = byte_level()(" the cat and the dog").input_ids
CHAT = [{"role": "user", "content": "the cat"}]


class Dated(Chatting):
    """A template that contains today's date."""

    def __init__(self, day):
        super().__init__()
        self.chat_template = f"the day {day} " + Chatting.chat_template


def begun(tmp_path, monkeypatch, loaded, **call):
    """A run that was interrupted after three tokens."""
    play(monkeypatch, prefilled(IDS[0]), plain(IDS[1:3]), KeyboardInterrupt())
    out = ts.generate(loaded, max_new_tokens=len(IDS), journal=tmp_path / "j", **call)
    assert (out.finish_reason, out.token_ids) == ("interrupted", IDS[:3])
    return out


@pytest.fixture
def loaded(tmp_path):
    (tmp_path / "model").mkdir()
    return model(tmp_path / "model")


def test_a_template_with_another_date_does_not_matter(tmp_path, monkeypatch, loaded):
    first = begun(tmp_path, monkeypatch, replaced(loaded, tokenizer=Dated("1")), messages=CHAT)
    tomorrow = replaced(loaded, tokenizer=Dated("2, a longer one"))
    assert replay(monkeypatch, IDS) == []
    out = ts.generate(tomorrow, messages=CHAT, max_new_tokens=len(IDS), journal=tmp_path / "j", resume=True)
    assert (out.token_ids, out.finish_reason, out.prompt_tokens) == (IDS, "length", first.prompt_tokens)
    other = [{"role": "user", "content": "the dog"}]
    with pytest.raises(ts.UserError, match="differs in prompt_ids"):
        ts.generate(tomorrow, messages=other, max_new_tokens=len(IDS), journal=tmp_path / "j", resume=True)


def test_a_tokenizer_that_has_changed_does_not_matter(tmp_path, monkeypatch, loaded):
    first = begun(tmp_path, monkeypatch, loaded, prompt="the cat")
    changed = Chatting()
    monkeypatch.setattr(Chatting, "__call__", lambda self, text, **options: {"input_ids": [1, 2, 3]})
    replay(monkeypatch, IDS)
    again = {"max_new_tokens": len(IDS), "journal": tmp_path / "j", "resume": True}
    assert ts.generate(replaced(loaded, tokenizer=changed), "the cat", **again).prompt_tokens == first.prompt_tokens


def test_the_prompt_may_be_left_out(tmp_path, monkeypatch, loaded):
    begun(tmp_path, monkeypatch, loaded, prompt=[5, 6, 7])
    replay(monkeypatch, IDS)
    out = ts.generate(loaded, max_new_tokens=len(IDS), journal=tmp_path / "j", resume=True)
    assert (out.token_ids, out.prompt_tokens) == (IDS, 3)
    with pytest.raises(ts.UserError, match="a prompt is missing"):
        ts.generate(loaded, max_new_tokens=9, journal=tmp_path / "new", resume=True)


def test_a_journal_without_a_header_for_a_call_without_a_prompt(tmp_path, monkeypatch, loaded):
    begun(tmp_path, monkeypatch, loaded, prompt=[5])
    file = tmp_path / "j"
    line = file.read_bytes().splitlines(keepends=True)[0]
    damaged = line.replace(b'"seed": 0', b'"seed": 1')
    for data, reported in (
        (damaged, "j is damaged in line 1: its checksum differs; start a new one"),
        (line[:40], "ends before its first line does; give the prompt too"),
        (b"words\n", "j is not a journal of this version of tokenswift_jax; name another file"),
    ):
        file.write_bytes(data)
        with pytest.raises(ts.UserError, match=reported):
            ts.generate(loaded, max_new_tokens=9, journal=file, resume=True)


def test_the_end_ids_are_those_of_the_first_run(tmp_path, monkeypatch, loaded):
    begun(tmp_path, monkeypatch, loaded, prompt=[5])
    replay(monkeypatch, IDS)
    changed = replaced(
        loaded, eos_token_ids=(0, IDS[4]), generation_config={"stop_strings": ["cat"], "min_new_tokens": 3}
    )
    out = ts.generate(changed, [5], max_new_tokens=len(IDS), journal=tmp_path / "j", resume=True)
    assert (out.token_ids, out.finish_reason) == (IDS, "length")


def test_the_sampling_is_that_of_the_first_run(tmp_path, monkeypatch, capsys, loaded):
    monkeypatch.chdir(tmp_path)
    first = replaced(loaded, generation_config={"do_sample": True, "temperature": 0.7})
    begun(tmp_path, monkeypatch, first, prompt=[5])
    changed = replaced(loaded, generation_config={"do_sample": True, "temperature": 0.6, "top_k": 5})
    monkeypatch.setattr(model_module, "load", lambda *_, **__: changed)
    kept, call = (tmp_path / "j").read_bytes(), {"journal": tmp_path / "j", "resume": True}
    replay(monkeypatch, IDS)
    assert ts.generate(changed, [5], max_new_tokens=len(IDS), **call).token_ids == IDS
    (tmp_path / "j").write_bytes(kept)
    words = ["--model", "model", "--max-new-tokens", str(len(IDS)), "--journal", "j", "--resume"]
    assert main([*words, "--temperature", "0.6"]) == 2
    assert "it differs in sampling.temperature;" in capsys.readouterr().err
    replay(monkeypatch, IDS)
    assert main([*words, "--temperature", "0.7"]) == 0
    assert "settings: temperature 0.7 (flags); top_k 50 (the journal)" in capsys.readouterr().err


def test_draft_heads_and_their_node_set_do_not_matter(tmp_path, monkeypatch, loaded):
    folder = tmp_path / "model"
    for first in (checkpoint.target_fingerprint(folder), checkpoint.fingerprint(folder)):  # the second: an old journal
        monkeypatch.setattr(checkpoint, "known_fingerprint", lambda *_, hashed=first: hashed)
        begun(tmp_path, monkeypatch, loaded, prompt=[5])
        monkeypatch.undo()
        if first == checkpoint.target_fingerprint(folder):
            (folder / "config.json").write_text('{"name": "scripted", "tokenswift": {"num_heads": 3}}')
        replay(monkeypatch, IDS)
        out = ts.generate(loaded, [5], max_new_tokens=len(IDS), journal=tmp_path / "j", resume=True)
        assert out.token_ids == IDS
        (tmp_path / "j").unlink()
        (folder / "config.json").write_text('{"name": "scripted"}')


@pytest.mark.parametrize("ids", [[5, 100000], [5, -1], [], "5", None])
def test_a_prompt_in_the_journal_outside_the_vocabulary(tmp_path, loaded, ids):
    header = {"format": "tokenswift_jax journal", "version": 1, "prompt_ids": ids}
    (tmp_path / "j").write_text(json.dumps(header) + "\n")
    with pytest.raises(ts.UserError, match="journal's prompt"):
        ts.generate(loaded, max_new_tokens=9, journal=tmp_path / "j", resume=True)


def test_on_the_command_line(tmp_path, monkeypatch, capsys, loaded):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_module, "load", lambda *_, **__: replaced(loaded, tokenizer=Dated("1")))
    play(monkeypatch, prefilled(IDS[0]), plain(IDS[1:3]), KeyboardInterrupt())
    words = ["--model", "model", "--journal", "j", "--max-new-tokens", str(len(IDS)), "--quiet"]
    assert main([*words, "--chat", "--prompt", "the cat"]) == 130
    capsys.readouterr()
    monkeypatch.setattr(model_module, "load", lambda *_, **__: replaced(loaded, tokenizer=Dated("2")))
    for again in (["--chat", "--prompt", "the cat"], ["--chat"], []):
        kept = (tmp_path / "j").read_bytes()
        replay(monkeypatch, IDS)
        assert main([*words, "--resume", *again]) == 0
        assert capsys.readouterr().out == " the cat and the dog"
        (tmp_path / "j").write_bytes(kept)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
@pytest.mark.parametrize("full", ["output", "stdout", "stats"])
def test_a_full_disk_names_its_file_and_keeps_the_statistics(tmp_path, full):
    program = (
        "import pytest, sys; from pathlib import Path; import scripted, tokenswift_jax.model as m;"
        "patch = pytest.MonkeyPatch(); loaded = scripted.model(Path('.'));"
        "patch.setattr(m, 'load', lambda *a, **b: loaded);"
        "scripted.play(patch, scripted.prefilled(300), *[scripted.plain([300] * 20) for _ in range(400)]);"
        "from tokenswift_jax.cli.generate import main; from tokenswift_jax.cli.command import leave;"
        "leave(main(sys.argv[1:]))"
    )
    words = ["--max-new-tokens", "41", "--quiet"]
    words += ["--output", "/dev/full" if full == "output" else "o"]
    words += ["--stats", "/dev/full" if full == "stats" else "s"]
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (here, here.parents[1])))}
    with open("/dev/full" if full == "stdout" else "/dev/null", "w") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            cwd=tmp_path,
            env=environment,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    named = "standard output" if full == "stdout" else "/dev/full"
    assert (done.returncode, done.stderr) == (1, f"error: cannot write {named}: No space left on device\n")
    if full == "stats":
        assert (tmp_path / "o").read_text()
    else:
        assert json.loads((tmp_path / "s").read_text())["finish_reason"] == "interrupted"


def test_a_journal_that_cannot_grow_ends_the_text_and_keeps_it(tmp_path, monkeypatch, capsys, loaded):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_module, "load", lambda *_, **__: loaded)
    play(monkeypatch, prefilled(IDS[0]), plain(IDS[1:3]), plain(IDS[3:]))
    writes = []

    def fsync(number, *, sync=os.fsync):
        writes.append(number)
        if len(writes) == 4:  # header, its folder, the first record
            raise OSError(28, "No space left on device")
        sync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    words = ["--prompt", "x", "--max-new-tokens", str(len(IDS)), "--journal", "j", "--stats", "s", "--output", "o"]
    assert main([*words, "--quiet"]) == 1
    shown = capsys.readouterr()
    text = byte_level().decode(IDS[:3])
    assert (shown.out, (tmp_path / "o").read_text()) == (text, text)
    assert shown.err.splitlines() == ["error: cannot write the journal j: No space left on device"]
    assert json.loads((tmp_path / "s").read_text())["token_ids"] == IDS[:3]
