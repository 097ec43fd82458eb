"""Things kept in memory within a count and a number of bytes; what is in use stays, of the rest the oldest goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Room:
    """How much is kept."""

    count: int
    bytes: int


class Shelf(Generic[T]):
    """Things by name. One thread's."""

    def __init__(self, room: Room, *, used: Callable[[str, T], bool]) -> None:
        """`used`: whether a thing must stay. Asked when room is wanted, so that nobody has to say when they are done."""
        self.room = room
        self.bytes = 0  # of all things together
        self._used = used
        self._things: OrderedDict[str, tuple[T, int]] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._things)

    def __contains__(self, name: str) -> bool:
        return name in self._things

    def get(self, name: str, *, renew: bool = False) -> T | None:
        """A thing; `renew`: it counts as new from now on."""
        if name not in self._things:
            return None
        if renew:
            self._things.move_to_end(name)
        return self._things[name][0]

    def put(self, name: str, thing: T) -> bool:
        """Keep a thing, in place of one of the same name -> whether there was room. Where there was none, nothing is removed for it."""
        size = size_of(thing)
        old = self._things[name][1] if name in self._things else 0
        spare = [other for other, (kept, _) in self._things.items() if other != name and not self._used(other, kept)]
        count, total = len(self._things) + (name not in self._things), self.bytes - old + size
        going = []
        for other in spare:
            if count <= self.room.count and total <= self.room.bytes:
                break
            going.append(other)
            count, total = count - 1, total - self._things[other][1]
        if count > self.room.count or total > self.room.bytes:
            return False
        for other in (*going, name):
            self.drop(other)
        self._things[name] = thing, size
        self.bytes += size
        return True

    def drop(self, name: str) -> None:
        """Remove a thing; harmless twice."""
        if (found := self._things.pop(name, None)) is not None:
            self.bytes -= found[1]


def size_of(thing: Any) -> int:
    """Bytes of all arrays and tensors in a thing made of dataclasses, mappings, sequences and those; each counts once."""
    seen: set[int] = set()

    def walk(part: Any) -> int:
        if part is None or isinstance(part, (str, bytes, int, float)) or id(part) in seen:
            return 0
        seen.add(id(part))
        if isinstance(size := getattr(part, "nbytes", None), int):
            return size
        if isinstance(part, Mapping):
            return sum(map(walk, part.values()))
        if isinstance(part, (list, tuple, set, frozenset)):
            return sum(map(walk, part))
        if is_dataclass(part) and not isinstance(part, type):
            return sum(walk(getattr(part, item.name)) for item in fields(part))
        return 0

    return walk(thing)
