"""In which requests objects are fetched: alone, or in parts of packs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flows.objects.packs import Packs

# What is needed first comes alone, in order: a part of a pack would hold back the rest of the first batches.
NUM_FIRST = 64
# A pack of which so large a share is wanted is read whole, part by part.
WHOLE_SHARE = 0.3
PART_BYTES = 8 * 2**20
# Bytes between two wanted objects that take less time than another request.
GAP_BYTES = 64 * 2**10


@dataclass(frozen=True)
class PackPart:
    """Bytes of a pack from `start` to `end`, and the objects in them with their own start and end in the pack.

    A `shared` part is cut alike by every process, so that one of a node reads it for all.
    """

    pack: str
    start: int
    end: int
    objects: tuple[tuple[str, int, int], ...]
    shared: bool


Request = str | PackPart


def plan_requests(digests: Sequence[str], packs: Packs) -> list[Request]:
    """The requests that fetch these objects, about in the order in which they are needed."""
    first, rest = digests[:NUM_FIRST], digests[NUM_FIRST:]
    by_pack: dict[str, list[str]] = defaultdict(list)
    requests: list[tuple[int, Request]] = []
    positions = {digest: number for number, digest in enumerate(rest)}
    for digest, slot in zip(rest, packs.find(rest), strict=True):
        if slot is None:
            requests.append((positions[digest], digest))
        else:
            by_pack[slot.pack].append(digest)
    for pack, wanted in by_pack.items():
        for part in _parts(pack, packs.content(pack), set(wanted)):
            needed = [positions[digest] for digest, _, _ in part.objects if digest in positions]
            alone = len(part.objects) == 1
            requests.append((min(needed), part.objects[0][0] if alone else part))
    return [*first, *(request for _, request in sorted(requests, key=lambda pair: pair[0]))]


def _parts(pack: str, content: Sequence[tuple[str, int, int]], wanted: set[str]) -> Iterator[PackPart]:
    held = [row for row in content if row[0] in wanted]
    if sum(end - start for _, start, end in held) > WHOLE_SHARE * content[-1][2]:
        for rows in _runs(content, gap=0):
            if any(row[0] in wanted for row in rows):
                yield PackPart(pack, rows[0][1], rows[-1][2], tuple(rows), shared=True)
    else:
        for rows in _runs(held, gap=GAP_BYTES):
            yield PackPart(pack, rows[0][1], rows[-1][2], tuple(rows), shared=False)


def _runs(rows: Sequence[tuple[str, int, int]], gap: int) -> Iterator[list[tuple[str, int, int]]]:
    """The rows in runs of at most PART_BYTES, with at most `gap` bytes between two of them."""
    run: list[tuple[str, int, int]] = []
    for row in rows:
        if run and (row[2] - run[0][1] > PART_BYTES or row[1] - run[-1][2] > gap):
            yield run
            run = []
        run.append(row)
    if run:
        yield run
