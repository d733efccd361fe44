"""The documents of a folder, the files of their results, and the command on folders that are wrong or partly so."""

import argparse
import json
import os

import pytest
from scripted import model, plain, play, prefilled
from tokenizers_made_here import byte_level

from tokenswift_jax import model as model_module
from tokenswift_jax.cli import documents as documents_command
from tokenswift_jax.cli.flags import SAMPLING, SPECULATION, flag_parser, parse
from tokenswift_jax.cli.generate import main
from tokenswift_jax.documents import results as results_module
from tokenswift_jax.documents.results import Results
from tokenswift_jax.documents.source import Document, documents_in
from tokenswift_jax.engine.journal import FORMAT, checked_line
from tokenswift_jax.errors import UserError

WORDS = ["--model", "model", "--documents", "in", "--output", "out"]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A folder of documents, and a model in name only that writes " the cat" for each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "model").mkdir()
    loaded = model(tmp_path / "model")
    monkeypatch.setattr(model_module, "load", lambda *_, **__: loaded)
    return tmp_path


def fill(folder, **files):
    for name, content in files.items():
        (folder / "in" / name.replace("_", ".")).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )


def lines_of(folder):
    return {line["document"]: line for line in map(json.loads, (folder / "out/report.jsonl").read_text().splitlines())}


def test_a_document_for_each_file_and_each_record(folders):
    fill(folders, b_txt="one", a_md="two", c_jsonl='{"prompt": "three"}\n\n{"prompt": "four", "id": 7}', d_pdf="no")
    fill(folders, e_TXT="five")
    (folders / "in/.hidden.txt").write_text("no")
    (folders / "in/sub.txt").mkdir()
    documents, others = documents_in(folders / "in")
    assert {one.name: one.prompt() for one in documents} == {
        "a": "two", "b": "one", "c-1": "three", "c-3": "four", "e": "five",
    }  # fmt: skip
    assert others == ["d.pdf", "sub.txt"]


def test_a_sequence_depends_on_the_name_alone(folders):
    fill(folders, a_txt="one", b_txt="one")
    before = {one.name: one.sequence for one in documents_in(folders / "in")[0]}
    assert before["a"] == Document("a", folders).sequence == 0xCA978112 & 0x7FFFFFFF  # of SHA-256("a"), FIPS 180
    fill(folders, Z_txt="zero")
    after = {one.name: one.sequence for one in documents_in(folders / "in")[0]}
    assert {**after, **before} == after
    assert len({*after.values()}) == 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no document; their names end in \.txt, \.md, \.jsonl"),
        ({"a_pdf": "x"}, "has no document"),
        ({"a_txt": "x", "a_md": "y"}, r"a\.md and a\.txt would both write a\.txt; rename one"),
        ({"a_jsonl": '{"prompt": "x"}', "a-1_md": "y"}, r"a-1\.md and a\.jsonl would both write a-1\.txt"),
        ({"x" * 240 + "_txt": "y"}, "has more than 200 bytes"),
    ],
)
def test_folders_that_are_no_job(folders, capsys, files, message):
    fill(folders, **files)
    with pytest.raises(UserError, match=message):
        documents_in(folders / "in")
    assert main(WORDS) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (folders / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "in"], "--output in is the folder of the documents; name another"),
        (["--output", "model/../in"], "is the folder of the documents"),
        (["--output", "in/a.txt"], "--output in/a.txt is a file; documents need a folder"),
        (["--output", "in/a.txt/b"], "--output in/a.txt/b: Not a directory"),
        (["--documents", "absent"], "--documents absent: No such file or directory"),
        (["--prompt", "x", "--stats", "s"], "leave out --prompt, --stats"),
        (["--sequence", "3", "--resume"], "leave out --sequence, --resume"),
        (["--lease-seconds", "0"], "not a whole number of at least 1"),
        (["--seed", "-1"], "not a whole number of at least 0"),
    ],
)
def test_flags_that_do_not_go_together(folders, capsys, words, message):
    fill(folders, a_txt="x")
    assert main([*WORDS, *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("words", [["--retry-failed"], ["--lease-seconds", "5"]])
def test_flags_of_documents_need_them(capsys, words):
    assert main(words) == 2
    assert "belong to --documents" in capsys.readouterr().err
    assert main(["--documents", "in"]) == 2
    assert "--documents needs a folder for the texts; name it with --output" in capsys.readouterr().err


class Read(argparse.Namespace):
    """Flags that remember which of them somebody has read."""

    def __getattribute__(self, name):
        if not name.startswith("_"):
            vars(self).setdefault("_names", set()).add(name)
        return super().__getattribute__(name)


def test_every_flag_reaches_the_documents_or_is_refused(folders, monkeypatch):
    fill(folders, a_txt="x")
    play(monkeypatch, prefilled(300), plain([301]))
    options = Read(**vars(parse([*WORDS, "--max-new-tokens", "2", "--quiet"])))
    assert documents_command.run(options, {}) == 0
    read = options._names | {*SAMPLING, *SPECULATION} - {"sequence"} | {"num_processes", "process_id"}
    read |= {"lease_seconds", "help"}
    unread = {name: flag for name, flag in flag_parser().flags.items() if name not in read}
    assert {"prompt", "stats", "resume"} <= unread.keys()
    for name, flag in unread.items():
        takes_no_value = name in ("resume", "show_acceptance", "mesh_report")
        with pytest.raises(UserError, match=rf"leave out {flag}$|coordinator"):
            parse([*WORDS, flag, *([] if takes_no_value else ["1"])])


def test_a_loop_ends_a_document(folders, monkeypatch, capsys):
    fill(folders, a_txt="x")
    play(monkeypatch, prefilled(300), plain([300] * 60))
    words = [*WORDS, "--max-new-tokens", "60", "--quiet"]
    assert main([*words, "--stop-on-repetition"]) == 0
    assert (lines_of(folders)["a"]["end"], lines_of(folders)["a"]["tokens"]) == ("repetition", 48)
    assert main(words) == 2
    assert "differs in stop_on_repetition" in capsys.readouterr().err


def test_documents_that_had_been_done_without_what_is_asked_are_named(folders, monkeypatch, capsys):
    fill(folders, a_txt="x")
    play(monkeypatch, prefilled(300), plain([301]))
    words = [*WORDS, "--max-new-tokens", "2", "--quiet"]
    assert main(words) == 0
    assert main(words) == 0
    for more, flag in ((["--audit"], "--audit"), (["--logprobs", "1"], "--logprobs")):
        assert main([*words, *more]) == 1
        assert f"a had been done without {flag}; name another folder" in capsys.readouterr().err


def test_documents_that_had_been_done_for_other_prompts_are_named(folders, monkeypatch, capsys):
    fill(folders, a_txt="x", b_txt="x", q_jsonl='{"prompt": "one"}\n{"prompt": "two"}', r_jsonl='{"prompt": "one"}')
    play(monkeypatch, prefilled(300), plain([301]))
    words = [*WORDS, "--max-new-tokens", "2", "--quiet"]
    assert main(words) == 0
    fill(folders, b_txt="y", q_jsonl='{"prompt": "zero"}\n{"prompt": "two"}\n', r_jsonl="[")
    assert main(words) == 1
    advice = "delete their .json and .journal in out to write them again"
    assert capsys.readouterr().err == f"error: b, q-1, r-1 had been done for other prompts; {advice}\n"
    for name in ("b.json", "b.journal", "q-1.json", "q-1.journal"):
        (folders / "out" / name).unlink()
    fill(folders, r_jsonl='{"prompt": "one"}')
    assert main(words) == 0
    statistics = json.loads((folders / "out/a.json").read_text())
    del statistics["prompt_sha256"]  # as earlier versions wrote it
    (folders / "out/a.json").write_text(json.dumps(statistics))
    fill(folders, a_txt="y")
    assert main(words) == 0


def test_documents_that_had_been_done_with_other_log_probabilities_are_named(folders, monkeypatch, capsys):
    fill(folders, a_txt="x")
    play(monkeypatch, prefilled(300), plain([301]))
    words = [*WORDS, "--max-new-tokens", "2", "--quiet"]
    assert main(words) == 0
    statistics = json.loads((folders / "out/a.json").read_text())
    statistics |= {"logprobs": [], "logprobs_count": 2, "logprobs_mode": "raw"}  # the scripted model gives none
    (folders / "out/a.json").write_text(json.dumps(statistics))
    assert main([*words, "--logprobs", "2"]) == 0
    for more in (["--logprobs", "3"], ["--logprobs", "2", "--logprobs-mode", "processed"]):
        assert main([*words, *more]) == 1
        assert "a had been done with another --logprobs or --logprobs-mode; name another" in capsys.readouterr().err


def test_fields_of_records_that_change_no_text_are_named(folders, monkeypatch, capsys):
    fill(folders, a_jsonl='{"prompt": "x", "max_new_tokens": 5}\n[\n{"prompt": "y", "id": 7}', b_txt='{"no": 1}')
    play(monkeypatch, prefilled(300), plain([301]))
    main([*WORDS, "--max-new-tokens", "2"])
    assert "fields of records that change no text: id, max_new_tokens; flags set" in capsys.readouterr().err


def test_an_error_in_one_document_does_not_end_the_others(folders, monkeypatch, capsys):
    fill(folders, a_txt=b"\xff\xfea\0", b_txt="", c_jsonl='{"prompt": 3}\n[\n{"prompt": "x"}\n{"prompt": "\\ud800"}')
    fill(folders, d_txt="x", e_txt="x", f_jsonl=b"\xff")
    play(monkeypatch, prefilled(300), plain([301]))
    assert main([*WORDS, "--max-new-tokens", "2", "--quiet"]) == 1
    lines = lines_of(folders)
    assert {name for name, line in lines.items() if line["status"] == "done"} == {"c-3", "d", "e"}, lines
    assert "byte-order mark of UTF-16" in lines["a"]["error"]
    assert "prompt is empty" in lines["b"]["error"]
    assert "line 2 of in/c.jsonl is not a record" in lines["c-2"]["error"]
    assert "f.jsonl is not UTF-8 text" in lines["f"]["error"]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1] == (
        "error: a, b, c-1, c-2, c-4 and 1 others failed; out/report.jsonl says why; --retry-failed tries them again"
    )
    assert (folders / "out/e.txt").read_text() == byte_level().decode([300, 301])
    statistics = json.loads((folders / "out/e.json").read_text())
    assert (statistics["document"], statistics["token_ids"]) == ("e", [300, 301])
    assert statistics["sequence"] == lines["e"]["sequence"] == Document("e", folders).sequence
    # Nothing is left to do; a document that has been corrected is tried again on request only.
    fill(folders, a_txt="x")
    assert main([*WORDS, "--max-new-tokens", "2", "--quiet"]) == 1
    assert lines_of(folders)["a"]["status"] == "failed"
    assert main([*WORDS, "--max-new-tokens", "2", "--quiet", "--retry-failed"]) == 1
    assert lines_of(folders)["a"]["status"] == "done"
    assert not [name for name in os.listdir(folders / "out") if "lease" in name]


def test_a_folder_of_another_job_is_refused(folders, monkeypatch, capsys):
    fill(folders, a_txt="x")
    play(monkeypatch, prefilled(300), plain([301]))
    assert main([*WORDS, "--max-new-tokens", "2", "--quiet"]) == 0
    assert main([*WORDS, "--max-new-tokens", "3", "--seed", "4"]) == 2
    assert "differs in max_new_tokens, seed; give that job's values or name another" in capsys.readouterr().err


def test_files_of_no_job_are_not_replaced(folders, monkeypatch, capsys):
    fill(folders, a_txt="x", b_txt="x")
    play(monkeypatch, prefilled(300), plain([301]))
    (folders / "out").mkdir()
    names = ["a.txt", "a.json", "b.error", "b.journal", "report.jsonl"]
    for name in (*names, "other.txt"):
        (folders / "out" / name).write_text('{"tokens": 3}\n')
    words = [*WORDS, "--max-new-tokens", "2", "--quiet"]
    assert main(words) == 2
    shown = "report.jsonl, a.txt, a.json and 2 others; move them away or name another folder"
    assert f"--output out has files that no job wrote and this one would replace: {shown}" in capsys.readouterr().err
    assert sorted(os.listdir(folders / "out")) == sorted([*names, "other.txt"])
    for name in names:
        (folders / "out" / name).unlink()
    assert main(words) == 0


def test_a_job_without_its_values_keeps_its_files(folders, monkeypatch, capsys):
    fill(folders, a_txt="x", b_txt="", c_txt="x")
    play(monkeypatch, prefilled(300), plain([301]))
    words = [*WORDS, "--max-new-tokens", "2", "--quiet"]
    assert main(words) == 1
    before = (folders / "out/a.json").read_bytes()
    (folders / "out/c.json").unlink()  # as after a kill between its text and its statistics
    (folders / "out/c.journal").write_bytes(checked_line(FORMAT))
    (folders / "out/.job.json").write_text("{")
    monkeypatch.setattr(results_module, "_PATIENCE", 0.0)
    assert main(words) == 2
    assert "out/.job.json is damaged; delete it if the folder's texts are of this job" in capsys.readouterr().err
    (folders / "out/.job.json").unlink()
    assert main(words) == 1
    assert (folders / "out/a.json").read_bytes() == before
    assert lines_of(folders)["b"]["status"] == "failed"


def test_a_folder_that_another_worker_has_just_claimed_is_no_foreign_one(folders, monkeypatch):
    fill(folders, a_txt="x")
    (folders / "out").mkdir()
    results, documents = Results(folders / "out"), documents_in(folders / "in")[0]
    listing, others = Results.listing, Results(folders / "out")

    def listed(asked):
        found = listing(asked)
        if asked is results and not found:
            others.claim({"seed": 1}, documents)
            others.failed(documents[0], "as the other worker writes it")
        return found

    monkeypatch.setattr(Results, "listing", listed)
    results.claim({"seed": 1}, documents)
    with pytest.raises(UserError, match="differs in seed"):
        results.claim({"seed": 2}, documents)


def test_a_folder_keeps_its_values_after_a_change_of_the_checkpoint_s_files(folders, monkeypatch):
    fill(folders, a_txt="x")
    play(monkeypatch, prefilled(300), plain([301]))
    changed = model(folders / "model", generation_config={"do_sample": True, "max_new_tokens": 3}, eos_token_ids=(7,))
    assert main([*WORDS, "--max-new-tokens", "2", "--quiet"]) == 0
    monkeypatch.setattr(model_module, "load", lambda *_, **__: changed)
    fill(folders, b_txt="x")
    play(monkeypatch, prefilled(300), plain([301]))
    assert main([*WORDS, "--quiet"]) == 0
    assert lines_of(folders)["b"]["tokens"] == 2


def test_an_interrupt_leaves_the_document_open(folders, monkeypatch):
    fill(folders, a_txt="x")
    play(monkeypatch, prefilled(300), KeyboardInterrupt())
    assert main([*WORDS, "--max-new-tokens", "4", "--quiet"]) == 130
    assert lines_of(folders)["a"]["status"] == "open"
    assert sorted(os.listdir(folders / "out")) == [".job.json", "a.journal", "report.jsonl"]


def test_the_old_worker_of_a_document_does_not_write_into_the_new_journal(tmp_path):
    results, document = Results(tmp_path), Document("a", tmp_path / "a.txt")
    results.take_over_journal(document)  # there is none yet
    with results.journal(document).open("ab") as old:
        old.write(b"one\n")
        old.flush()
        results.take_over_journal(document)
        old.write(b"two\n")
    assert results.journal(document).read_bytes() == b"one\n"
    assert os.listdir(tmp_path) == ["a.journal"]
