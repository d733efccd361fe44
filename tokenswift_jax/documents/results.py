"""The output folder of many documents: texts, journals, results, failures, the job's own values, and the report."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenswift_jax.documents.lease import owner_of
from tokenswift_jax.documents.source import Document
from tokenswift_jax.engine.journal import recorded_header
from tokenswift_jax.errors import UserError, writing
from tokenswift_jax.paths import expanded, resolved

JOB, REPORT = ".job.json", "report.jsonl"
PROMPT_HASH = "prompt_sha256"  # in the statistics of a document; earlier versions wrote none
_NAMED = 3  # files in one line
_PATIENCE = 10.0  # seconds that another worker has to write the few bytes of the job's values


class Results:
    """The files of a job; each appears whole or not at all.

    For a document of name N: N.txt is its text, N.json its statistics (the document is done), N.error the reason that
    it has none (it has failed), N.journal its journal.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def listing(self) -> set[str]:
        """The names of all files in the folder."""
        return set(os.listdir(self.folder))

    def journal(self, document: Document) -> Path:
        """The file of the document's journal."""
        return self.folder / f"{document.name}.journal"

    def is_settled(self, document: Document, listing: Iterable[str] | None = None) -> bool:
        """Whether the document is done or has failed; without a `listing`, the disk is asked."""
        names = f"{document.name}.json", f"{document.name}.error"
        if listing is None:
            return any((self.folder / name).exists() for name in names)
        return any(name in listing for name in names)

    def recorded(self) -> dict[str, Any]:
        """The values of the job that the folder is of; empty where there is none."""
        return _object(self.folder / JOB) or {}

    def claim(self, job: Mapping[str, Any], documents: Iterable[Document]) -> None:
        """Writes the job's values, or compares them with those of the job that the folder is of.

        Raises:
          UserError: they differ (the message names the fields), the folder cannot be written, or it is of no job and
            has files, of other programs, that the job would write.
        """
        path, own = self.folder / JOB, json.loads(json.dumps(job))
        try:
            foreign = self._foreign(documents) if JOB not in self.listing() else []
            # A worker that has claimed the folder since the first listing writes its files after the job's values.
            if foreign and JOB not in self.listing():
                shown = ", ".join(foreign[:_NAMED])
                more = f" and {len(foreign) - _NAMED} others" if len(foreign) > _NAMED else ""
                raise UserError(
                    f"output {self.folder} has files that no job wrote and this one would replace: {shown}{more}; "
                    "move them away or name another folder",
                    arguments=("output",),
                )
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(own))
            return
        except FileExistsError:
            pass
        except OSError as error:
            raise UserError(f"output {self.folder}: {error.strerror}", arguments=("output",)) from None
        until = time.monotonic() + _PATIENCE
        while (other := _object(path)) is None:
            if time.monotonic() > until:
                raise UserError(f"{path} is damaged; delete it if the folder's texts are of this job")
            time.sleep(0.1)
        differing = sorted(name for name in {*own, *other} if own.get(name) != other.get(name))
        if differing:
            raise UserError(
                f"output {self.folder} has texts of another job: it differs in {', '.join(differing)}; give that job's "
                "values or name another folder",
                arguments=("output",),
            )

    def take_over_journal(self, document: Document) -> None:
        """Puts a copy in place of the journal of a worker that is taken for dead: if it is alive after all, it goes on
        in the old file, which has no name any more, and does not write into this one."""
        journal = self.journal(document)
        with contextlib.suppress(FileNotFoundError):
            self._write(journal, journal.read_bytes())

    def done(self, document: Document, text: str, statistics: Mapping[str, Any]) -> None:
        """Writes the text, and then the statistics, which settle the document.

        Raises:
          WriteError: the system refuses.
        """
        self._write(self.folder / f"{document.name}.txt", text.encode("utf-8", "replace"))
        self._write(self.folder / f"{document.name}.json", json.dumps(statistics, allow_nan=False).encode() + b"\n")

    def failed(self, document: Document, reason: str) -> None:
        """Writes the reason, one line, which settles the document.

        Raises:
          WriteError: the system refuses.
        """
        self._write(self.folder / f"{document.name}.error", reason.encode("utf-8", "replace") + b"\n")

    def forget_failures(self, documents: Iterable[Document]) -> None:
        """Makes the documents that have failed open again."""
        for document in documents:
            (self.folder / f"{document.name}.error").unlink(missing_ok=True)

    def report(self, documents: Iterable[Document]) -> list[dict[str, Any]]:
        """Writes the report, one JSON object a line for each document, and returns its lines.

        Every worker writes it from the files of all, so that the last one to end leaves the whole report.

        Raises:
          WriteError: the system refuses.
        """
        listing = self.listing()
        lines = [self._line(document, listing) for document in documents]
        self._write(self.folder / REPORT, "".join(json.dumps(line) + "\n" for line in lines).encode())
        return lines

    def done_otherwise(
        self, documents: Iterable[Document], checks: Sequence[Callable[[Document, Mapping[str, Any]], bool]]
    ) -> list[list[str]]:
        """For each check of a document and its statistics, the names of the documents that are done and fail it."""
        failing: list[list[str]] = [[] for _ in checks]
        for document in documents:
            if (statistics := _object(self.folder / f"{document.name}.json")) is None:
                continue
            for names, passes in zip(failing, checks, strict=True):
                if not passes(document, statistics):
                    names.append(document.name)
        return failing

    def _foreign(self, documents: Iterable[Document]) -> list[str]:
        """The files in the folder that a job of these documents writes and no job of theirs wrote.

        The files of a job remain the job's own without its values: a person may have deleted damaged ones.
        """
        listing, found = self.listing(), list[str]()
        reported = _reported(self.folder / REPORT)
        if REPORT in listing and reported is None:
            found.append(REPORT)
        for document in documents:
            name = document.name
            there = [file for end in ("txt", "json", "error", "journal") if (file := f"{name}.{end}") in listing]
            if not there:
                continue
            done = (_object(self.folder / f"{name}.json") or {}).get("document") == name
            begun = recorded_header(self.journal(document)) is not None
            own = {"txt": done or begun, "json": done, "error": (reported or {}).get(name) == "failed"}
            found += [file for file in there if not own.get(file.rpartition(".")[2], begun)]
        return found

    def _line(self, document: Document, listing: set[str]) -> dict[str, Any]:
        line: dict[str, Any] = {"document": document.name, "file": document.path.name, "line": document.line}
        line["sequence"] = document.sequence
        done, error = self.folder / f"{document.name}.json", self.folder / f"{document.name}.error"
        if done.name in listing and (found := _object(done)) is not None:
            audit = found.get("audit")
            line |= {"status": "done", "tokens": found.get("generated_tokens"), "end": found.get("finish_reason")}
            return line if audit is None else line | {"audit": audit, "audit_failed": bool(found.get("audit_failed"))}
        if error.name in listing:
            with contextlib.suppress(OSError):
                return line | {"status": "failed", "error": error.read_text(encoding="utf-8").strip()}
        owner = owner_of(self.folder, document.name, listing)
        return line | ({"status": "open"} if owner is None else {"status": "running", "worker": owner})

    def _write(self, path: Path, data: bytes) -> None:
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        with writing(path):
            try:
                with draft.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            except OSError:
                draft.unlink(missing_ok=True)
                raise


def output_folder(output: Path, documents: Path) -> Path:
    """The folder for the results, made if there is none.

    Raises:
      UserError: it is the folder of the documents, or is no folder, or cannot be made or written.
    """
    folder = expanded(output)
    if resolved(folder) == resolved(expanded(documents)):
        raise UserError(f"output {output} is the folder of the documents; name another", arguments=("output",))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"output {output} is a file; documents need a folder", arguments=("output",)) from None
    except OSError as error:
        raise UserError(f"output {output}: {error.strerror}", arguments=("output",)) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"output {output} is not writable; name another folder", arguments=("output",))
    return folder


def _reported(path: Path) -> dict[str, str] | None:
    """The status of each document in a report, by name; None for a file that is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return {line["document"]: line["status"] for line in lines}
    return None


def _object(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    return None
