"""K/V of earlier texts on the host: a text that begins as one of them need not compute them again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np

from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.dense import BLOCK


@dataclass(eq=False)
class Entry:
    """The K/V of `BLOCK` tokens after all the tokens of the entries before it.

    Attributes:
      before: the entry of the tokens before them; None: they begin the text.
      key: identifies the entry; it contains the token ids themselves, so that no other text has it.
      family: the runs that may use it; None: all texts of the caller.
      part: the K/V in the host's memory; None until they have arrived there.
      after: the number of entries that continue this one.
      kept: false once the store has dropped the entry.
    """

    before: Entry | None
    key: tuple
    family: str | None = None
    part: StoredKV | None = None
    after: int = 0
    kept: bool = True


class PrefixStore:
    """K/V by the caller and all token ids from the first one on. Any thread may call it.

    K/V of a prompt serve every later text of the same caller. Those that a step of decoding wrote may differ from them
    in the last bits: they serve the family of their run alone, which is the run itself and its branches.

    Over the budget, the store drops the end of the text that was used least recently. An entry is dropped before those
    that it continues, and no text drops its own beginning.

    Attributes:
      budget: the most bytes of K/V.
      bytes: their bytes now.
    """

    def __init__(self, budget: int, part_bytes: int) -> None:
        """`part_bytes` are those of the K/V of `BLOCK` positions."""
        self.budget, self.bytes, self._part_bytes = budget, 0, part_bytes
        self._entries: dict[tuple, Entry] = {}
        self._ends: OrderedDict[Entry, None] = OrderedDict()  # the entries that none continues, the newest last
        self._lock = threading.Lock()
        self._copying = ThreadPoolExecutor(1, "tokenswift-prefixes")
        self._newest: Future[None] | None = None

    def find(self, caller: tuple, family: str | None, token_ids: Sequence[int]) -> list[tuple[Entry, StoredKV]]:
        """The entries of the longest known beginning of a text, in order, with their K/V."""
        found: list[tuple[Entry, StoredKV]] = []
        with self._lock:
            for entry in self._walk(caller, family, token_ids):
                if entry.part is None:
                    break
                found.append((entry, entry.part))
                self._use(entry)
        return found

    def forget(self, caller: tuple, family: str | None, token_ids: Sequence[int]) -> None:
        """Drops the K/V of a text, but for a beginning that other texts continue."""
        with self._lock:
            while found := list(self._walk(caller, family, token_ids)):
                if found[-1].after:
                    return
                self._drop(found[-1])

    def reserve(
        self, caller: tuple, family: str | None, before: Entry | None, token_ids: Sequence[int]
    ) -> tuple[Entry | None, bool]:
        """The entry of the next `BLOCK` tokens of a text, and whether it is new and `fill` has to follow.

        None: the entry before it is gone, or the budget has no room.
        """
        key = _key(caller, before, token_ids, family)
        with self._lock:
            if before is not None and not before.kept:
                return None, False
            entry = self._entries.get(key)
            if entry is not None:
                self._use(entry)
                return entry, False
            while self.bytes + self._part_bytes > self.budget:
                last = next(iter(self._ends), None)
                if last is None or last is before:
                    return None, False
                self._drop(last)
            entry = self._entries[key] = Entry(before, key, family)
            self.bytes += self._part_bytes
            if before is not None:
                before.after += 1
                self._ends.pop(before, None)
            self._ends[entry] = None
            return entry, True

    def fill(self, entry: Entry, read: Callable[[], StoredKV]) -> None:
        """Copies the K/V of a new entry to the host, beside the caller; `read` may wait for the device."""

        def copy() -> None:
            entry.part = jax.tree.map(np.asarray, read())

        self._newest = self._copying.submit(copy)

    def settle(self) -> None:
        """Waits for the copies under way."""
        if self._newest is not None:
            self._newest.result()

    def close(self) -> None:
        """Makes no more copies."""
        self._copying.shutdown(wait=False, cancel_futures=True)

    def _walk(self, caller: tuple, family: str | None, token_ids: Sequence[int]) -> Iterator[Entry]:
        """The entries of the longest known beginning of a text; after one of the family's come no others."""
        before, pure = None, True
        for start in range(0, len(token_ids) - BLOCK + 1, BLOCK):
            piece = token_ids[start : start + BLOCK]
            of_family = None if family is None else self._entries.get(_key(caller, before, piece, family))
            before = of_family or (self._entries.get(_key(caller, before, piece, None)) if pure else None)
            if before is None:
                return
            pure = pure and of_family is None
            yield before

    def _use(self, entry: Entry) -> None:
        if entry in self._ends:
            self._ends.move_to_end(entry)

    def _drop(self, entry: Entry) -> None:
        entry.kept, entry.part = False, None
        del self._entries[entry.key], self._ends[entry]
        self.bytes -= self._part_bytes
        if entry.before is not None:
            entry.before.after -= 1
            if not entry.before.after:  # the rest of that text goes next
                self._ends[entry.before] = None
                self._ends.move_to_end(entry.before, last=False)


def _key(caller: tuple, before: Entry | None, token_ids: Sequence[int], family: str | None) -> tuple:
    return caller, before, family, np.asarray(token_ids, np.int32).tobytes()


class StoredText:
    """The place of one text in the store, while it enters a cache and while it grows.

    Attributes:
      parts: the K/V that the text may take over, in order.
    """

    def __init__(self, store: PrefixStore, caller: tuple, family: str | None, token_ids: Sequence[int]) -> None:
        """`token_ids` are the tokens whose K/V the text's cache needs; `family` None: nothing goes on from the text."""
        self._store, self._caller, self._family = store, caller, family
        self._found = store.find(caller, family, token_ids)
        self.parts = [part for _, part in self._found]
        self._last: Entry | None = None
        self._count, self._lost, self._pure = 0, False, True

    def begin(self, parts: int) -> None:
        """Notes how many of the parts the text takes over."""
        entries = [entry for entry, _ in self._found[:parts]]
        self._last, self._count = (entries[-1] if entries else None), len(entries)
        self._pure = all(entry.family is None for entry in entries)
        self._found, self.parts = [], []

    def decode(self) -> None:
        """Notes that decoding steps write the K/V from now on, which only texts of the family may use."""
        self._pure = False

    def behind(self, positions: int) -> bool:
        """Whether the store lacks a part of so many positions, and may take it."""
        return not self._lost and (self._count + 1) * BLOCK <= positions

    def keep(self, positions: int, token_ids: Sequence[int], read: Callable[[int], Callable[[], StoredKV]]) -> None:
        """Stores the parts that the store lacks, of `positions` whose K/V are final, in a text of `token_ids`.

        `read` starts the copy of a part, by its number, and returns a function that waits for it.
        """
        while self.behind(positions):
            if not self._pure and self._family is None:
                self._lost = True
                return
            piece = token_ids[self._count * BLOCK : (self._count + 1) * BLOCK]
            family = None if self._pure else self._family
            self._last, new = self._store.reserve(self._caller, family, self._last, piece)
            if self._last is None:
                self._lost = True
            elif new:
                self._store.fill(self._last, read(self._count))
            self._count += 1
