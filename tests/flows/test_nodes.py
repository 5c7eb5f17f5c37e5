"""What a training's driver sees of the cluster's nodes, and the interface that workers on different nodes speak over."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

import psutil
import pytest

from flows.cluster import interfaces, nodes
from flows.cluster.nodes import Node
from flows.cluster.workers import check_size
from flows.errors import AskedWrongly
from flows.records import Workers

A = Node("a (10.0.0.1)", {"CPU": 1.0, "memory": 5.0})
B = Node("b (10.0.0.2)", {"CPU": 1.0})
C = Node("c (10.0.0.3)", {"CPU": 8.0, "GPU": 2.0})


@pytest.mark.parametrize(
    ("workers", "fits"),
    [
        (Workers(9), (1, 8)),
        (Workers(9, cpus_per_worker=3), (0, 2)),
        (Workers(9, gpus_per_worker=1), (0, 2)),
        (Workers(9, 0.5), (0, 4)),
    ],
)
def test_a_node_has_room_for_whole_workers_with_all_that_they_ask_for(workers: Workers, fits: tuple[int, int]) -> None:
    assert (A.room(workers), C.room(workers)) == fits


def test_a_lost_node_that_the_training_does_not_need_is_told_as_such() -> None:
    told = nodes.changes({"1": A, "2": B, "3": C}, {"1": A, "3": C}, Workers(2))
    assert told == ["Ray lost the node b (10.0.0.2); there is room for all 2 workers"]


def test_a_training_with_a_range_goes_on_with_what_is_left() -> None:
    told = nodes.changes({"1": A, "2": B}, {"1": A}, Workers(2, least=1))
    assert told == ["Ray lost the node b (10.0.0.2); there is room for 1 of 2 workers: the training goes on with 1"]


def test_a_training_of_a_fixed_size_waits_and_says_what_for_and_what_else_could_be_written() -> None:
    told = nodes.changes({"1": A, "2": B}, {"1": A}, Workers(2))
    assert told == [
        "Ray lost the node b (10.0.0.2); there is room for 1 of 2 workers: the training waits for a node with room for 1 more "
        "(or cancel, and write workers: {count: [1, 2]})"
    ]


def test_a_training_with_a_range_waits_below_its_least() -> None:
    told = nodes.changes({"1": A, "2": B, "3": C}, {"2": B}, Workers(8, least=2))
    assert told == [
        "Ray lost the node a (10.0.0.1)",
        "Ray lost the node c (10.0.0.3); there is room for 1 of 8 workers: the training waits for a node with room for 1 more",
    ]


def test_a_node_that_joins_is_told_and_no_change_tells_nothing() -> None:
    assert nodes.changes({"1": A}, {"1": A, "2": B}, Workers(2)) == [
        "The node b (10.0.0.2) joined; there is room for all 2 workers"
    ]
    assert nodes.changes({"1": A}, {"1": A}, Workers(2)) == []


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Lets the nodes be looked at as often as there are looks, and gives what was told."""

    def watch(*looks: dict[str, Node] | Exception, workers: Workers, fails: Sequence[Exception] = ()) -> list[str]:
        left, told, failures, seen_all = list(looks), [], list(fails), threading.Event()

        def tell(line: str) -> None:
            if failures:
                raise failures.pop()
            told.append(line)

        def look() -> dict[str, Node]:
            if len(left) == 1:
                seen_all.set()
            found = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(nodes, "look", look)
        with nodes.watching(workers, tell):
            assert seen_all.wait(10)
            time.sleep(0.05)
        return told

    monkeypatch.setattr(nodes, "LOOK_SECONDS", 0.01)
    return watch


def test_a_training_that_waits_says_so_again_and_again(
    watched: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "TOLD_AGAIN_SECONDS", 0.02)
    first, *again = watched({"1": A, "2": B}, {"1": A}, workers=Workers(2))
    assert first.startswith("Ray lost the node b")
    assert again
    assert all(line.startswith("Still waiting: there is room for 1 of 2 workers") for line in again)


def test_a_training_for_which_there_is_no_room_yet_says_at_once_what_it_waits_for(watched: Callable[..., list[str]]) -> None:
    told = watched({}, {"2": C}, workers=Workers(1, gpus_per_worker=1))
    assert told == [
        "On this cluster there is room for 0 of 1 worker: the training waits for a node with room for 1 more",
        "The node c (10.0.0.3) joined; there is room for the one worker",
    ]


def test_a_cluster_that_an_autoscaler_makes_larger_is_told_from_one_that_stays() -> None:
    kuberay = "ulimit -n 65536; ray start --head --no-monitor --num-cpus=0"
    assert nodes.may_grow({"KUBERAY_GEN_RAY_START_CMD": kuberay})
    assert nodes.may_grow({"RAY_enable_autoscaler_v2": "1"})
    assert not nodes.may_grow({"KUBERAY_GEN_RAY_START_CMD": kuberay.replace("--no-monitor ", "")})
    assert not nodes.may_grow({"RAY_enable_autoscaler_v2": "0"})


def test_a_cluster_that_stays_too_small_is_refused_with_what_to_lower() -> None:
    check_size({"CPU": 4.0, "GPU": 1.0}, Workers(2, gpus_per_worker=0.5, cpus_per_worker=2))
    check_size({"CPU": 4.0}, Workers(9, cpus_per_worker=2, least=2))
    with pytest.raises(AskedWrongly, match=r"2 x 1 GPU and the cluster has 0: lower workers.count or workers.gpus_per"):
        check_size({"CPU": 4.0}, Workers(2, gpus_per_worker=1))


def test_a_training_that_goes_on_says_so_once(watched: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "TOLD_AGAIN_SECONDS", 0.0)
    assert len(watched({"1": A, "2": B}, {"1": A}, workers=Workers(2, least=1))) == 1


def test_what_cannot_be_seen_or_told_for_a_while_is_told_later(
    watched: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    busy = ConnectionError("busy")
    told = watched({"1": A, "2": B}, busy, {"1": A}, busy, {"1": A}, {"1": A}, {"1": A}, workers=Workers(2), fails=[busy, busy])
    assert [line[:20] for line in told] == ["Ray lost the node b "]
    assert caplog.text.count("the nodes cannot be watched now, the training goes on: busy") == 1


def test_workers_speak_over_the_interface_that_has_their_nodes_address() -> None:
    loopback = next(name for name, held in psutil.net_if_addrs().items() if any(one.address == "127.0.0.1" for one in held))
    assert interfaces.interface_of("127.0.0.1") == loopback
    assert interfaces.interface_of("192.0.2.77") is None


def test_an_interface_that_a_person_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    interfaces.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
