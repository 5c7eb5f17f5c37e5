"""Places: a folder and a prefix of a bucket behave alike; locks in either are held once, and outlive no kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import processes
from flows.errors import AskedWrongly, HeadstartError, Unreachable
from flows.landing.bucket import fetch
from flows.places import Bucket, Folder, Place, StoredFile, open_place
from flows.places import leases as lease_room
from flows.places.check import check_root
from flows.places.leases import Lease, Leases
from flows.places.locks import Held, locks_of
from tests import object_store

KINDS = ("folder", "bucket")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[object_store.Bucket]]:
    with object_store.serving(monkeypatch) as served:
        yield served


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, bucket: type[object_store.Bucket]) -> Place:
    return open_place(tmp_path / "root" if request.param == "folder" else "s3://pets/team/nights/")


def test_a_file_is_written_read_listed_and_removed(place: Place) -> None:
    inner = place.within("work/w1")
    assert (inner.read("a.json"), inner.exists("a.json"), dict(inner.facts()), inner.fetch("a.json")) == (None, False, {}, None)
    file = StoredFile(inner, "a.json")
    file.write_json({"größe": 1})
    assert file.read_json() == {"größe": 1}
    first = inner.facts()["a.json"]
    assert abs(first.written_at - time.time()) < 5
    time.sleep(0.01)
    inner.write("a.json", b"12345")
    assert inner.facts()["a.json"].num_bytes == 5
    assert inner.facts()["a.json"].stamp != first.stamp
    inner.within("deeper").write("b", "text")
    assert set(inner.facts()) == {"a.json"}, "what lies within a place within is none of its own"
    assert inner.read("deeper/b") == b"text"
    assert {name: fact.num_bytes for name, fact in place.tree().items()} == {"work/w1/a.json": 5, "work/w1/deeper/b": 4}
    fetched = inner.fetch("a.json")
    assert fetched is not None
    assert fetched.read_bytes() == b"12345"
    inner.remove("a.json", "never was")
    assert not inner.exists("a.json")
    place.within("work").clear()
    assert inner.read("deeper/b") is None


def test_of_many_who_create_one_file_one_succeeds(place: Place) -> None:
    start, won = threading.Barrier(8), list[int]()

    def create(number: int) -> None:
        start.wait()
        if place.create("only", str(number)):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert place.read("only") == str(won[0]).encode()
    assert len(won) == 1


def test_what_fills_a_folder_is_stored_with_its_names_and_of_a_block_that_fails_a_bucket_gets_nothing(place: Place) -> None:
    with place.filling() as local:
        for name, content in {"bundle/card.md": b"card", "bundle/SHA256SUMS": b"", "training.pt": bytes(9 * 2**20)}.items():
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            (local / name).write_bytes(content)
    assert place.read("bundle/card.md") == b"card"
    assert place.read("training.pt") == bytes(9 * 2**20), "in parts"
    with pytest.raises(RuntimeError), place.within("failed").filling() as local:
        raise RuntimeError
    assert not place.within("failed").facts()


def test_a_place_has_an_address_that_opens_it_again(tmp_path: Path) -> None:
    assert open_place("s3://pets/a/") == Bucket("s3://pets/a")
    assert open_place(str(tmp_path)) == Folder(tmp_path)
    for place in (Bucket("s3://pets/a"), Folder(tmp_path)):
        assert open_place(place.within("work/w1").address) == place.within("work/w1")


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("NoSuchBucket", 404, "there is no such bucket: make it, or name another"),
        ("AccessDenied", 403, "access is refused: set AWS_PROFILE"),
        ("InvalidAccessKeyId", 403, "the server does not know the access key"),
        ("SignatureDoesNotMatch", 403, "the secret key does not fit the access key"),
        ("ExpiredToken", 400, "the session token has expired: get a new one"),
        ("RequestTimeTooSkewed", 403, "the clock of this machine differs from the server's by more than 15 minutes"),
        ("NotImplemented", 501, "the server knows no conditional puts"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_refused_with_the_remedy(
    bucket: type[object_store.Bucket], code: str, status: int, words: str
) -> None:
    bucket.failure = (status, code)
    begun = time.monotonic()
    with pytest.raises(AskedWrongly, match=rf"the storage s3://pets/x cannot be used: {words}") as refused:
        check_root("s3://pets/x")
    assert time.monotonic() - begun < 15
    assert "b" * 9 not in str(refused.value)


def test_a_server_without_conditional_puts_is_refused(bucket: type[object_store.Bucket]) -> None:
    check_root("s3://pets/x")
    assert not bucket.objects, "the check leaves nothing"
    bucket.knows_conditions = False
    with pytest.raises(AskedWrongly, match=r"knows no conditional puts .*wrote one object twice"):
        check_root("s3://pets/x")


@pytest.mark.parametrize("reads", ["storage", "source"])
def test_a_server_that_takes_requests_and_is_silent_is_unreachable_within_seconds(
    reads: str, tmp_path: Path, bucket: type[object_store.Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(Unreachable, match="does not answer"):
            check_root("s3://pets/x") if reads == "storage" else fetch("s3://pets/x", tmp_path)
        assert time.monotonic() - begun < 15


def test_a_server_that_is_away_is_unreachable_within_seconds(
    bucket: type[object_store.Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(Unreachable, match="does not answer"):
        check_root("s3://pets/x")
    assert time.monotonic() - begun < 15


def test_a_server_that_is_out_of_order_for_a_while_is_waited_for(bucket: type[object_store.Bucket]) -> None:
    bucket.failure = (503, "SlowDown")
    threading.Timer(1.5, lambda: setattr(bucket, "failure", None)).start()
    open_place("s3://pets/x").write("a", b"1")
    assert bucket.objects["x/a"] == b"1"


def test_a_lock_is_held_once_and_says_by_whom(place: Place) -> None:
    locks, told = locks_of(place.within("locks")), list[str]()
    with locks.hold("pets.v2", "pid 1") as lock:
        lock.check()
        with pytest.raises(Held, match="pid 1"), locks.hold("pets.v2", "pid 2", wait_seconds=0.3, on_wait=told.append):
            raise AssertionError("two hold it")
        with locks.hold("pets", "pid 3", wait_seconds=0):
            assert dict(locks.holders()) == {"pets": "pid 3", "pets.v2": "pid 1"}
    assert told == ["pid 1"]
    assert not locks.holders()
    assert list(locks.take_abandoned()) == [], "who ended well left nothing"
    with locks.hold("pets.v2", "pid 4", wait_seconds=0):
        pass


def test_of_many_who_want_a_lock_one_has_it_at_a_time(place: Place) -> None:
    locks, inside, seen = locks_of(place.within("locks")), list[int](), list[int]()

    def take(number: int) -> None:
        with locks.hold("pets", str(number), every_seconds=0.02):
            inside.append(number)
            seen.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [1] * 6


HOLD = """
import sys
from flows.places import open_place
from flows.places.locks import locks_of
with locks_of(open_place(sys.argv[1])).hold("pets", "pid of a child"):
    print("there", flush=True)
    sys.stdin.read()
"""


def test_a_killed_holder_leaves_its_lock_which_is_taken_at_once_on_its_machine(place: Place) -> None:
    here = place.within("locks")
    command = [sys.executable, "-c", HOLD, here.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"there\n"
        locks = locks_of(here)
        assert dict(locks.holders()) == {"pets": "pid of a child"}
        assert list(locks.take_abandoned()) == [], "it lives"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not locks.holders()
    assert list(locks.take_abandoned()) == ["pets"]
    assert list(locks.take_abandoned()) == []
    with locks.hold("pets", "the next", wait_seconds=0):
        assert dict(locks.holders()) == {"pets": "the next"}


def test_a_lease_of_another_machine_counts_until_it_was_not_renewed_for_its_time(
    bucket: type[object_store.Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Bucket("s3://pets/locks")
    content = {"words": "pid 7", "machine": "other boot ns", "process": "7:1.0", "token": "t", "renewals": 3, "ended": False}
    place.write("pets.00000004", json.dumps(content))
    locks = Leases(place)
    with pytest.raises(Held, match="pid 7 on other"), locks.hold("pets", "me", wait_seconds=0):
        raise AssertionError("it is held")
    bucket.written_at["locks/pets.00000004"] -= 2 * lease_room.LEASE_SECONDS
    with locks.hold("pets", "me", wait_seconds=0) as lock:
        lock.check()
        assert set(place.facts()) == {"pets.00000005"}, "the rows before it are gone"


def test_a_lease_is_renewed_and_one_that_cannot_be_is_lost_in_words(
    bucket: type[object_store.Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_room, "RENEW_SECONDS", 0.1)
    place = Bucket("s3://pets/locks")
    with Leases(place).hold("pets", "me") as lock:
        assert isinstance(lock, Lease)
        deadline = time.monotonic() + 20
        while json.loads(place.read("pets.00000001") or b"{}")["renewals"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        lock.check()
        # Another machine took over, as if this one had slept.
        place.write("pets.00000002", json.dumps({"words": "other", "machine": "o", "process": processes.mark()}))
        while time.monotonic() < deadline:
            try:
                lock.check()
            except HeadstartError as error:
                assert "s3://pets/locks/pets was lost" in str(error)  # noqa: PT017
                break
            time.sleep(0.05)
        else:
            raise AssertionError("it still thinks that it holds it")
    assert dict(Leases(place).holders()) == {"pets": "other on o"}, "whose lease was lost ends nobody else's"
