"""One of the workers that write the texts of many documents: it takes open documents until none is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenswift_jax.documents.lease import Lease, Leases
from tokenswift_jax.documents.results import PROMPT_HASH, Results
from tokenswift_jax.documents.source import Document, prompt_hash
from tokenswift_jax.errors import NumericsError, UserError, WriteError, is_out_of_memory
from tokenswift_jax.stats import GenerationResult

_OUT_OF_MEMORY = "memory ran out on the way; ask for a shorter text, or give a shorter document"


class LostError(Exception):
    """The document is in the hands of a worker that has taken it over."""


def work(
    documents: Sequence[Document],
    results: Results,
    leases: Leases,
    write: Callable[[Document, str, Lease], GenerationResult],
    *,
    recorded: Mapping[str, Any],
    pause: float,
    settled: Callable[[Document, GenerationResult | None, str], None],
) -> None:
    """Writes documents until each one is done or has failed, whichever worker did it.

    While others have the last documents, this worker waits, so that it can take them over.

    Args:
      documents: all of the job.
      results: the folder of their results.
      leases: the leases in that folder.
      write: returns the text of a document for its prompt; it raises LostError soon after its lease is lost.
      recorded: fields that the statistics of each document get too, beside the hash of its prompt.
      pause: seconds between two looks at documents that others have.
      settled: receives each document that this worker has settled: its result, or None and the reason.

    Raises:
      KeyboardInterrupt: `write` ended for that reason; the document is open, and its journal has the text so far.
      OSError: the folder cannot be written.
    """
    while True:
        listing = results.listing()
        remaining = [document for document in documents if not results.is_settled(document, listing)]
        if not remaining:
            return
        written = 0
        for document in remaining:
            lease = leases.take(document.name, listing)
            if lease is None:
                continue
            try:
                # Its last worker may have settled it after the listing.
                if not results.is_settled(document):
                    written += 1
                    _settle(document, results, lease, write, recorded, settled)
            finally:
                lease.release()
        if not written:
            time.sleep(pause)


def _settle(
    document: Document,
    results: Results,
    lease: Lease,
    write: Callable[[Document, str, Lease], GenerationResult],
    recorded: Mapping[str, Any],
    settled: Callable[[Document, GenerationResult | None, str], None],
) -> None:
    """Writes one document and its files; an error that concerns this document alone becomes its failure."""
    if lease.number > 1:
        results.take_over_journal(document)
    try:
        prompt = document.prompt()
        digest, result = prompt_hash(prompt), write(document, prompt, lease)
    except LostError:
        return
    except (UserError, NumericsError) as error:
        found: tuple[str, GenerationResult] | str = str(error)
    except WriteError:
        raise
    except (MemoryError, RuntimeError, ValueError) as error:
        if not is_out_of_memory(error):
            raise
        found = _OUT_OF_MEMORY
    else:
        found = digest, result
    lease.renew()
    if lease.lost.is_set():
        return
    if isinstance(found, str):
        results.failed(document, found)
        settled(document, None, found)
    else:
        digest, result = found
        own = {"document": document.name, PROMPT_HASH: digest, **recorded, **result.to_dict()}
        results.done(document, result.text, own | ({"audit_failed": result.audit_failed} if result.audit else {}))
        settled(document, result, "")
