"""The command over scripted runs: what lands on stdout, on stderr and in files."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from chatting import Chatting
from scripted import drafted, model, plain, play, prefilled, replay
from tokenizers_made_here import byte_level

from tokenswift_jax import model as model_module
from tokenswift_jax.cli.generate import DEMO_PROMPT, main
from tokenswift_jax.errors import NumericsError
from tokenswift_jax.sampling import SamplingConfig

TEXT = " the cat and the dog 😀 the end"
IDS = byte_level()(TEXT).input_ids
GO = ("--max-new-tokens", str(len(IDS)))
GENERATION = {"do_sample": True, "temperature": 0.5, "top_k": 9}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Stands in for `load`; notes what it was asked for."""
    folder = tmp_path / "model"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    asked = []

    def substitute(*arguments, mesh, pipeline_depth, **_):
        assert pipeline_depth is None
        asked.append((*arguments, mesh))
        return load.model

    load = SimpleNamespace(asked=asked, model=model(folder, generation_config=GENERATION))
    monkeypatch.setattr(model_module, "load", substitute)
    return load


def test_text_on_stdout_report_on_stderr_and_files(load, monkeypatch, capsys, tmp_path):
    play(monkeypatch, prefilled(IDS[0]), drafted(IDS[1:4]), plain(IDS[4:]))
    assert main([*GO, "--output", "o", "--stats", "s", "--journal", "j"]) == 0
    shown = capsys.readouterr()
    assert shown.out == (tmp_path / "o").read_text() == TEXT
    stats = json.loads((tmp_path / "s").read_text())
    assert stats["token_ids"] == IDS
    assert "text" not in stats
    assert len((tmp_path / "j").read_text().splitlines()) == 4
    report = shown.err.splitlines()
    assert len(report) == 7
    assert report[0] == f"{len(IDS)} tokens in 1.00 s, {len(IDS) - 1:.1f} tokens/s; ended by the length asked for"
    assert report[3] == "auto chose: ngram, 3 nodes was 2.00x as fast as plain decoding"
    assert report[5] == f"compiled in 2.00 s, prefilled {stats['prompt_tokens']} tokens in 0.50 s"
    assert report[6] == "settings: temperature 0.5, top_k 9 (generation_config.json)"
    # 12 weights matrices by hand: 2 layers of 2*8*4*(2+1) + 3*8*16, output 400*8; cache 2*1*4 a position and layer.
    values = 2 * (2 * 8 * 4 * 3 + 3 * 8 * 16) + 400 * 8 + 2 * 8 * (stats["prompt_tokens"] + len(IDS) / 2)
    assert f"read {stats['iterations'] * values * 4 / 1e9:.2f} GB/s" in report[4]


def test_without_arguments_the_demo_goes_on_from_its_opening(load, monkeypatch, capsys):
    run = play(monkeypatch, prefilled(IDS[0]), plain(IDS[1:]))
    run.steps[-1].rows[0].log.token_ids[-1] = 0
    assert main([]) == 0
    assert load.asked == [(None, None, None, None)]
    assert run.asked["prompts"] == [byte_level()(DEMO_PROMPT).input_ids]
    assert run.asked["max_new_tokens"] == 256
    assert run.asked["sampling"] == SamplingConfig(temperature=0.5, top_k=9)
    assert run.asked["speculation"].mode == "auto"


def test_flags_reach_the_run_and_come_before_the_checkpoint_s(load, monkeypatch):
    run = play(monkeypatch, prefilled(5), plain([6] * 6))
    words = (
        "--model m --dtype bfloat16 --prompt x --max-new-tokens 7 --min_new_tokens=2 --ignore-eos --capacity 99 "
        "--mesh 1x1 --temperature 0 --top-k 0 --top-p 0.9 --min-p 0.1 --eta-cutoff 0.01 --repetition-penalty 1.2 "
        "--penalty-window 5 --min-tokens-to-keep 2 --suppress-tokens 3,4 --seed 8 --mode tokenswift --schedule partial "
        "--tree 1,2,2 --node-budget 6 --ngram-k 3 --ngram-slots 4 --draft-cache 128 --draft-sinks 4 "
        "--draft-block 16 --refresh-interval 9 --quiet"
    )
    assert main([*words.split(), "--rope-override", '{"rope_type": "yarn"}', "--stop", "zz"]) == 0
    assert load.asked == [("m", "bfloat16", {"rope_type": "yarn"}, "1x1")]
    assert run.asked["sampling"] == SamplingConfig(0.0, None, 0.9, 0.1, 0.01, 1.2, 5, 2, (3, 4), 8)
    chosen = run.asked["speculation"]
    assert (chosen.mode, chosen.schedule, chosen.tree, chosen.node_budget) == ("tokenswift", "partial", (1, 2, 2), 6)
    assert (chosen.ngram_k, chosen.ngram_slots) == (3, 4)
    assert (chosen.draft_cache, chosen.draft_sinks) == (128, 4)
    assert (chosen.draft_block, chosen.refresh_interval) == (16, 9)
    limits = {name: run.asked[name] for name in ("max_new_tokens", "min_new_tokens", "ignore_eos", "capacity")}
    assert limits == {"max_new_tokens": 7, "min_new_tokens": 2, "ignore_eos": True, "capacity": 99}


def test_a_prompt_from_a_file_from_ids_and_from_standard_input(load, monkeypatch, tmp_path):
    (tmp_path / "p.txt").write_text("the cat\n")
    (tmp_path / "p.json").write_text("[7, 8]")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the dog")))
    run = play(monkeypatch, prefilled(5))
    for flag, value, ids in (
        ("--prompt-file", "p.txt", byte_level()("the cat\n").input_ids),
        ("--prompt-ids", "p.json", [7, 8]),
        ("--prompt-file", "-", byte_level()("the dog").input_ids),
    ):
        assert main([flag, value, "--max-new-tokens", "1", "--quiet"]) == 0
        assert run.asked["prompts"] == [ids]


def test_a_chat_is_encoded_once_by_the_code_that_python_calls(load, monkeypatch, tmp_path):
    tokenizer = Chatting()
    load.model = model(tmp_path / "model", tokenizer=tokenizer)
    run = play(monkeypatch, prefilled(5))
    assert main(["--prompt", "the cat", "--chat", "--max-new-tokens", "1", "--quiet"]) == 0
    assert (run.asked["prompts"], tokenizer.texts) == ([byte_level()("<user>the cat").input_ids], ["<user>the cat"])
    assert main(["--prompt", "the cat", "--max-new-tokens", "1", "--quiet"]) == 0
    assert tokenizer.texts == ["<user>the cat", "the cat"]


def test_drafts_are_coloured_on_stdout_only(load, monkeypatch, capsys, tmp_path):
    play(monkeypatch, prefilled(IDS[0]), drafted(IDS[1:3]), drafted(IDS[3:5], source=2), plain(IDS[5:]))
    assert main([*GO, "--show-acceptance", "--output", "o", "--quiet"]) == 0
    out = capsys.readouterr()
    pieces = [byte_level().decode([token]) for token in IDS]
    assert out.out.startswith(
        f"{pieces[0]}\x1b[32m{pieces[1]}\x1b[0m{pieces[2]}\x1b[36m{pieces[3]}\x1b[0m{pieces[4]}{pieces[5]}"
    )
    assert out.err == ""
    assert (tmp_path / "o").read_text() == TEXT


def test_without_a_tokenizer_ids_are_shown(load, monkeypatch, capsys, tmp_path):
    load.model = model(tmp_path / "model", tokenizer=None)
    (tmp_path / "p.json").write_text("[7]")
    play(monkeypatch, prefilled(5), plain([6, 7]))
    assert main(["--prompt-ids", "p.json", "--max-new-tokens", "3", "--quiet"]) == 0
    assert capsys.readouterr().out == "5 6 7 "


@pytest.mark.parametrize("inside", [True, False])
def test_an_interrupt_keeps_text_journal_and_stats(load, monkeypatch, capsys, tmp_path, inside):
    kept = IDS[:6]
    script = [prefilled(kept[0]), plain(kept[1:])]
    if inside:
        play(monkeypatch, *script, KeyboardInterrupt())
    else:  # while the second chunk is being shown
        play(monkeypatch, *script, plain(IDS[6:]))
        counted = []

        def interrupted_add(self, records):
            counted.append(records)
            if len(counted) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr("tokenswift_jax.cli.progress.ProgressLine.add", interrupted_add)
    assert main([*GO, "--journal", "j", "--stats", "s", "--output", "o"]) == 130
    stats = json.loads((tmp_path / "s").read_text())
    assert (stats["finish_reason"], stats["token_ids"]) == ("interrupted", kept)
    text = byte_level().decode(kept)
    assert (tmp_path / "o").read_text() == text
    assert capsys.readouterr().out == text
    replay(monkeypatch, IDS)
    assert main([*GO, "--journal", "j", "--resume", "--quiet"]) == 0
    assert capsys.readouterr().out == TEXT, "a resumed run shows the whole text"


def test_an_interrupt_before_the_first_token(load, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_module, "load", interrupted)
    assert main(["--stats", "s"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_not_a_number_stops_with_the_position(load, monkeypatch, capsys, tmp_path):
    play(monkeypatch, prefilled(IDS[0]), NumericsError(77))
    assert main([*GO, "--journal", "j", "--stats", "s"]) == 2
    shown = capsys.readouterr()
    assert shown.out == byte_level().decode(IDS[:1])
    assert len(shown.err.splitlines()) == 1
    assert "position 77" in shown.err
    assert len((tmp_path / "j").read_text().splitlines()) == 2
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("failed", "status", "verdict"), [(False, 0, "passed"), (True, 1, "FAILED")])
def test_a_failed_audit_ends_with_status_one(load, monkeypatch, capsys, failed, status, verdict):
    report = SimpleNamespace(positions=1, mismatches=int(failed), max_margin=0.25, failed=failed)
    audit = SimpleNamespace(audit=lambda *arguments: report)
    monkeypatch.setitem(sys.modules, "tokenswift_jax.audit.replay", audit)
    play(monkeypatch, prefilled(5))
    assert main(["--max-new-tokens", "1", "--audit", "--stats", "s"]) == status
    assert f"audit {verdict}: {int(failed)} of 1 tokens" in capsys.readouterr().err.splitlines()[-1]
    with open("s") as file:
        assert json.load(file)["audit"] == {"positions": 1, "mismatches": int(failed), "max_margin": 0.25}


def generate_into(monkeypatch, out, err, *flags):
    """Runs the command with these file descriptors as stdout and stderr."""
    play(monkeypatch, prefilled(IDS[0]), plain(IDS[1:]))
    with (
        open(out, "w", closefd=False) as stdout,
        open(err, "w", closefd=False) as stderr,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        assert main([*GO, *flags]) == 0


def test_in_a_shared_log_the_report_begins_on_a_line_of_its_own(load, monkeypatch, tmp_path):
    """`> log 2>&1`: text, then a line end that stderr wrote, then the report."""
    log = os.open("log", os.O_CREAT | os.O_WRONLY)
    generate_into(monkeypatch, log, os.dup(log))
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == TEXT
    assert lines[1].startswith(f"{len(IDS)} tokens in ")
    assert len(lines) == 8


def test_a_text_that_ends_its_line_gets_no_second_line_end(load, monkeypatch, tmp_path):
    ids = byte_level()("the end\n").input_ids
    play(monkeypatch, prefilled(ids[0]), plain(ids[1:]))
    with open("log", "w") as log:
        monkeypatch.setattr(sys, "stdout", log)
        monkeypatch.setattr(sys, "stderr", log)
        assert main(["--max-new-tokens", str(len(ids))]) == 0
    assert (tmp_path / "log").read_text().startswith(f"the end\n{len(ids)} tokens in ")


@pytest.mark.parametrize("flags", [(), ("--quiet",)])
def test_a_file_gets_exactly_the_text(load, monkeypatch, tmp_path, flags):
    out, err = (os.open(name, os.O_CREAT | os.O_WRONLY) for name in ("out", "err"))
    generate_into(monkeypatch, out, err, *flags)
    assert (tmp_path / "out").read_text() == TEXT
    assert (tmp_path / "err").read_text()[:1] == ("" if flags else str(len(IDS))[0]), "no empty line before the report"


def test_a_quiet_run_adds_nothing_to_a_shared_log(load, monkeypatch, tmp_path):
    log = os.open("log", os.O_CREAT | os.O_WRONLY)
    generate_into(monkeypatch, log, os.dup(log), "--quiet")
    assert (tmp_path / "log").read_text() == TEXT


@pytest.mark.parametrize(("piped", "begins"), [(True, "\r\n"), (False, "")])
def test_beside_a_terminal_only_a_pipe_s_text_may_need_a_line_end(load, monkeypatch, piped, begins):
    """`... | tee file` shows the text on the terminal that the report goes to; `... > file` does not."""
    terminal, err = os.openpty()
    reading, out = os.pipe() if piped else (None, os.open("out", os.O_CREAT | os.O_WRONLY))
    generate_into(monkeypatch, out, err)
    os.close(out)
    os.close(err)  # a report that never came is an error, not a wait
    text = os.read(reading, 1000).decode() if piped else open("out").read()  # noqa: SIM115
    assert text == TEXT
    shown = ""
    while "settings: " not in shown:  # a terminal hands over what has arrived so far
        shown += os.read(terminal, 100_000).decode()
    before = shown[: shown.index(f"{len(IDS)} tokens in ")]
    assert before.rsplit("\x1b8", 1)[1] == begins, "after the progress line's last escape"


def test_a_reader_that_leaves_ends_the_run_quietly(tmp_path):
    """`... | head`: stdout is closed after the first text; no traceback, statistics kept."""
    program = (
        "import pytest, sys; from pathlib import Path; import scripted, tokenswift_jax.model as m;"
        "from tokenswift_jax.cli.generate import main;"
        "patch = pytest.MonkeyPatch(); loaded = scripted.model(Path('.'));"
        "patch.setattr(m, 'load', lambda *a, **b: loaded);"
        "scripted.play(patch, scripted.prefilled(300), *[scripted.plain([300] * 2000) for _ in range(400)]);"
        "sys.exit(main(['--max-new-tokens', '900000', '--stats', 's', '--quiet']))"
    )
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.path.dirname(os.path.dirname(here))])}
    command = f'"{sys.executable}" -c "{program}" | head -c 1; echo " ${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.split()[-1] == "141", "as of a program that SIGPIPE ended"
    assert json.loads((tmp_path / "s").read_text())["finish_reason"] == "interrupted"
