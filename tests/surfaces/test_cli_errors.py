"""Bad input gets one line on stderr, exit status 2, and nothing else anywhere."""

import json

import pytest
from scripted import model, play, prefilled
from tokenizers_made_here import byte_level

from tokenswift_jax import model as model_module
from tokenswift_jax.cli.generate import main
from tokenswift_jax.engine import session
from tokenswift_jax.errors import UserError

FLAGS = [  # (arguments, what the line has to name)
    ("--no-such-flag", "--no-such-flag"),
    ("stray", "stray"),
    ("--max-new 5", "--max-new"),
    ("--max-new-tokens", "--max-new-tokens"),
    ("--max-new-tokens 0", "at least 1"),
    ("--max-new-tokens ten", "'ten' is not a whole number"),
    ("--min-new-tokens -1", "--min-new-tokens"),
    ("--min-new-tokens 9 --max-new-tokens 8", "--min-new-tokens 9 is above --max-new-tokens 8"),
    ("--prompt a --prompt-file b", "--prompt, --prompt-file"),
    ("--prompt a --prompt-ids b", "--prompt, --prompt-ids"),
    ("--prompt-ids a --chat", "--chat needs a prompt of text"),
    ("--chat", "--chat needs a prompt of text"),
    ("--model m", "a prompt is missing"),
    ("--temperature -1", "error: --temperature is -1.0; it must be 0"),
    ("--temperature warm", "'warm' is not a number"),
    ("--temperature nan", "--temperature is nan"),
    ("--top-k -1", "--top-k"),
    ("--top-p 0", "--top-p is 0.0"),
    ("--top-p 1.5", "--top-p is 1.5"),
    ("--min-p -0.1", "--min-p is -0.1"),
    ("--eta-cutoff 1", "--eta-cutoff is 1"),
    ("--repetition-penalty 0", "--repetition-penalty is 0"),
    ("--penalty-window 0", "--penalty-window"),
    ("--min-tokens-to-keep 0", "--min-tokens-to-keep"),
    ("--suppress-tokens 1;2", "--suppress-tokens"),
    ("--seed -1", "--seed"),
    ("--seed 4294967296", "--seed is 4294967296"),
    ("--mode fast", "--mode"),
    ("--mode ngram --schedule partial", "--mode ngram has no use for --schedule"),
    ("--schedule fused", "--mode auto has no use for --schedule"),
    ("--mode autoregressive --draft-cache 64", "no use for --draft-cache"),
    ("--mode autoregressive --tree 1,2 --ngram-k 3", "no use for --tree, --ngram-k"),
    ("--mode medusa --ngram-slots 3", "no use for --ngram-slots"),
    ("--mode selfspec --node-budget 3", "no use for --node-budget"),
    ("--mode tokenswift --schedule fused --refresh-interval 5", "tokenswift --schedule fused has no use for"),
    ("--mode ngram --ngram-k 0", "--mode 'ngram' needs --ngram-k of"),
    ("--mode ngram --no-shared-noise", "--mode ngram has no use for --no-shared-noise"),
    ("--tree 1,x", "--tree"),
    ("--tree 1,0", "--tree (1, 0): at least two depths"),
    ("--tree 3", "--tree (3,)"),
    ("--node-budget 0", "--node-budget"),
    ("--draft-cache 8", "--draft-cache is 8"),
    ("--capacity 0", "--capacity"),
    ("--stuck-seconds 9", "--stuck-seconds needs several processes"),
    ("--logprobs 3 --output o", "name a file with --stats"),
    ("--logprobs -1", "--logprobs"),
    ("--logprobs-mode processed", "--logprobs-mode has no use without --logprobs"),
    ("--mesh 2x1", "--mesh 2x1: it must be data=2,model=4, or 4 for model=4, or auto"),
    ("--mesh model=2 --pipeline-depth 8", "--pipeline-depth 8 has no use on the mesh model=2, which has no axis stage"),
    ("--mesh stage=4 --pipeline-depth 7", "--pipeline-depth 7 is too small for the 4 stages of the mesh stage=4"),
    ("--rope-override {", "--rope-override"),
    ("--rope-override [1]", "--rope-override"),
    ("--resume", "name it with --journal"),
    ("--output nowhere/file", "--output nowhere/file: there is no folder nowhere"),
    ("--stats nowhere/file", "no folder nowhere"),
    ("--journal nowhere/file", "--journal nowhere/file: there is no folder nowhere"),
    ("--output folder", "is a folder"),
    ("--stats folder", "--stats folder is a folder"),
    ("--output same --stats ./same", "one file twice"),
    ("--journal old", "--journal old exists; continue it with --resume or name"),
    ("--journal old --resume", "not a journal"),
    ("--prompt-file missing", "missing"),
    ("--prompt-file binary", "not UTF-8 text"),
    ("--prompt-file folder", "folder"),
    ("--prompt-file empty", "empty"),
    ("--prompt-ids binary", "not UTF-8 text"),
    ("--prompt-ids outside.json", "token id 400"),
    ("--prompt-ids none.json", "empty"),
    ("--prompt x --chat", "no chat template; give text without --chat"),
    ("--suppress-tokens 400", "--suppress-tokens has ids outside the vocabulary"),
    ("--coordinator h:1 --num-processes 2", "; --process-id is missing"),
    ("--coordinator h:1 --num-processes 2 --process-id 3", "--process-id 3 of --num-processes 2: numbers run from 0"),
]


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """Files to trip over, a model that loads and a run that would give a token."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    work = tmp_path / "work"
    (work / "folder").mkdir(parents=True)
    (work / "old").write_text("not a journal\n")
    (work / "binary").write_bytes(b"\xff\xfe\0")
    (work / "empty").write_text("")
    (work / "outside.json").write_text("[1, 400]")
    (work / "none.json").write_text("[]")
    monkeypatch.chdir(work)
    monkeypatch.setattr(model_module, "load", lambda *_, **__: model(folder))
    play(monkeypatch, prefilled(5))
    return work


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def assert_refused(arguments, named, scene, capsys):
    before = contents(scene)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert len(shown.err.splitlines()) == 1
    assert named in shown.err
    assert contents(scene) == before


@pytest.mark.parametrize(("arguments", "named"), FLAGS, ids=[arguments for arguments, _ in FLAGS])
def test_a_wrong_flag(scene, capsys, arguments, named):
    words = arguments.split()
    files = [] if {"--output", "--stats", "--journal", "--resume"} & set(words) else ["--output", "o", "--stats", "s"]
    assert_refused([*words, *files], named, scene, capsys)


def test_an_empty_prompt_and_an_empty_stop(scene, capsys):
    assert_refused(["--prompt", ""], "the prompt is empty", scene, capsys)
    assert_refused(["--stop", ""], "--stop", scene, capsys)


@pytest.mark.parametrize("stage", ["load", "start"])
def test_what_the_checkpoint_or_the_run_refuses(scene, capsys, monkeypatch, stage):
    def refuse(*arguments, **options):
        raise UserError("the file is truncated\nfetch it again")

    monkeypatch.setattr(*{"load": (model_module, "load"), "start": (session, "Session")}[stage], refuse)
    files = ["--output", "o", "--stats", "s", "--journal", "j"]
    assert_refused(["--prompt", "x", *files], "the file is truncated fetch it again", scene, capsys)


def test_text_for_a_checkpoint_without_a_tokenizer(scene, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(model_module, "load", lambda *_, **__: model(tmp_path / "elsewhere", tokenizer=None))
    assert_refused(["--prompt", "x"], "no tokenizer; give the prompt as token ids", scene, capsys)
    assert_refused(["--prompt-ids", "outside.json", "--stop", "x"], "token id 400", scene, capsys)


def test_a_journal_of_another_run(scene, capsys):
    assert main(["--journal", "j", "--max-new-tokens", "1", "--seed", "3", "--quiet"]) == 0
    capsys.readouterr()
    assert_refused(["--journal", "j", "--resume", "--seed", "4"], "sampling.seed", scene, capsys)
    assert_refused(["--journal", "j", "--resume", "--prompt", "x"], "prompt_ids", scene, capsys)
    lines = (scene / "j").read_text().splitlines()
    assert json.loads(lines[0])["prompt_ids"] == byte_level()("x").input_ids or len(lines) == 2


def test_a_file_that_may_not_be_written(scene, capsys, monkeypatch):
    (scene / "locked").write_text("keep")
    # Permissions do not bind root, so the system's answer is scripted.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for flag in ("--output", "--stats"):
        assert_refused([flag, "locked"], "not writable", scene, capsys)
        assert_refused([flag, "new"], "not writable", scene, capsys)
