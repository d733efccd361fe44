"""The folder of runs after accidents: other programs' files, damage, kills, a full disk, another checkpoint."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest
from live import PROMPT, begin, ended, follow, state, until
from live import RUNS as PATH

pytest.importorskip("starlette")
from tokenswift_jax.engine.journal import Journal
from tokenswift_jax.errors import WriteError
from tokenswift_jax.serve.run import new_id
from tokenswift_jax.serve.run_store import RunStore, UnreadableError

# Changes of a description that no server makes.
ODD = [
    {"created": "2026-01-01"},
    {"created": None},
    {"created": float("nan")},
    {"created": float("inf")},
    {"created": 10**400},
    {"id": 5},
    {"state": "writing"},
    {"tokens": "many"},
    {"background": 1},
    {"max_new_tokens": "x"},
    {"max_new_tokens": None},
    {"max_new_tokens": 0},
    {"stop_token_ids": 7},
    {"details": []},
    {"details": {"surface": "runs", "name": "\ud800"}},
    {"details": {"surface": "runs", "branched_at": "here"}},
]


@pytest.fixture
def folder(live):
    """The folder of runs; at the end, it has no file more than before."""
    folder = live.service.store.folder
    before = set(os.listdir(folder))
    yield folder
    for name in set(os.listdir(folder)) - before:
        shutil.rmtree(folder / name)


def planted(folder, content, name=None):
    """A folder with a description that another program wrote."""
    name = new_id("run") if name is None else name
    (folder / name).mkdir()
    (folder / name / "run.json").write_text(content)
    return name


def test_odd_descriptions_keep_nobody_from_lists_and_from_going_on(live, folder, caplog):
    run_id = begin(live, 4)
    ended(live, run_id)
    whole = json.loads((folder / run_id / "run.json").read_text()) | {"state": "active"}
    odd = [planted(folder, text) for text in ("", "[" * 200_000, "[]", "\0", "{}")]
    for change in ODD:
        name = new_id("run")
        odd.append(planted(folder, json.dumps(whole | {"id": name} | change), name))
    for missing in whole.keys() - {"stops_from", "cached"}:
        name = new_id("run")
        kept = {field: value for field, value in (whole | {"id": name}).items() if field != missing}
        odd.append(planted(folder, json.dumps(kept), name))
    planted(folder, json.dumps(whole), "foreign")
    planted(folder, json.dumps(whole), f"{run_id}.bak")
    active = new_id("run")
    shutil.copytree(folder / run_id, folder / active)
    (folder / active / "run.json").write_text(json.dumps(whole | {"id": active}))
    assert [run["id"] for run in live.send(PATH)[2]["data"]].count(run_id) == 1
    unfinished = live.service.store.unfinished()
    assert active in unfinished
    assert not {*odd, "foreign", f"{run_id}.bak"} & {*unfinished}
    assert sorted(record.args[0] for record in caplog.records) == sorted(odd)
    for name in odd:
        assert live.send(f"{PATH}/{name}")[0] == 404


def test_a_run_of_damaged_tokens_says_so_and_can_be_deleted(live, folder):
    run_id = begin(live, 40)
    ended(live, run_id)
    live.service._stored.pop(run_id)  # as after a restart
    journal = folder / run_id / "journal"
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([lines[0], lines[1].replace(b"1", b"2", 1), *lines[2:]]))
    status, _, answer = live.send(f"{PATH}/{run_id}")
    assert (status, answer["error"]["code"]) == (409, "run_unreadable")
    assert "its journal is damaged in line 2" in answer["error"]["message"]
    assert str(folder) not in answer["error"]["message"]
    assert live.send(f"{PATH}/{run_id}", headers={"x-api-key": "theirs"})[0] == 404
    assert live.send(f"/v1/responses/{run_id}")[0] == 404
    assert live.send(f"{PATH}/{run_id}", method="DELETE")[0] == 200
    assert not (folder / run_id).exists()
    run_id = begin(live, 4)
    ended(live, run_id)
    live.service._stored.pop(run_id)
    (folder / run_id / "journal").unlink()
    assert "its journal is gone" in live.send(f"{PATH}/{run_id}")[2]["error"]["message"]


def test_a_server_with_another_dtype_names_it(live, folder):
    run_id = begin(live, 4)
    ended(live, run_id)
    other = RunStore(folder, replace(live.model, dtype="bfloat16"))
    with pytest.raises(UnreadableError, match="other values than this server's: dtype"):
        other.load(run_id)
    assert other.load(new_id("run")) is None


def test_a_branch_is_no_run_until_all_its_tokens_are_on_disk(live, folder, monkeypatch):
    parent = begin(live, 60)
    ended(live, parent)
    copies, append = [], Journal.append

    def copied(journal, records, trace):
        copies.append(shutil.copytree(journal._path.parent, folder / new_id("run")))
        append(journal, records, trace)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", copied)
        assert live.send(f"{PATH}/{parent}/branch", {"at": 50, "max_tokens": 51})[0] == 201
        live.emptied()
    begun = copies[0]  # what a server leaves that is killed before the first tokens
    store = live.service.store
    assert (begun / "journal").exists()
    assert live.send(f"{PATH}/{begun.name}")[0] == 404
    store.unfinished()
    assert begun.exists(), "another server may be at work there"
    os.utime(begun, (0, 0))
    store.unfinished()
    assert not begun.exists()


def test_tokens_that_no_journal_has_are_seen_by_nobody(live, folder, monkeypatch):
    append, chunks = Journal.append, []

    def full(journal, records, trace):
        chunks.append(records)
        if len(chunks) == 3:
            raise WriteError(journal._path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        append(journal, records, trace)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        run_id = begin(live, 190, seed=4)
        run = ended(live, run_id)
    assert run["state"] == "failed"
    assert "No space left" in run["error"]
    written = [token for chunk in chunks[:2] for token in chunk.token_ids.tolist()]
    seen, events = follow(live, run_id)
    assert [token for event in events for token in event["token_ids"]] == written
    assert run["tokens"] == len(written) < 190
    assert len(live.send(f"{PATH}/{run_id}/text.jsonl")[2].decode().splitlines()) == 1 + len(written)
    assert live.send(f"{PATH}/{run_id}/branch", {"at": len(written) + 1})[0] == 400
    expected = live.alone(PROMPT, 191, seed=4)
    assert expected.text.startswith(seen)
    live.post(f"{PATH}/{run_id}/continue", max_tokens=191)  # there is room again
    assert ended(live, run_id)["finish_reason"] == "length"
    assert follow(live, run_id)[0] == expected.text


def test_the_command_of_a_branch_that_begins_with_given_tokens(live):
    parent = begin(live, 20, seed=4)
    ended(live, parent)
    for given, has_one in (({"append": [100, 200]}, False), ({}, True)):
        made = live.send(f"{PATH}/{parent}/branch", {"at": 0, **given})[2]
        assert (live.send(f"{PATH}/{made['id']}/command")[2]["command"] is not None) == has_one
        until(lambda made=made: state(live, made["id"])["state"] == "finished", "it does not end")
