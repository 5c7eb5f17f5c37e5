"""The feature store gives back what was written, in the order asked, whoever writes, dies, prunes or damages beside it."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heads.errors import HeadsError
from heads.features import FeatureError, FeatureStore, Key, TrunkFeatures, trunk_id
from heads.features.folder import Opened, ShardFolder
from heads.features.shards import Layout

TRUNK = trunk_id({"backbone": "mobilenet_v2", "cut": 8})


def keys_of(numbers: Sequence[int], view: int = 0) -> list[Key]:
    """Keys that tell their number in the digest's last digits."""
    return [Key(f"{number * 2_654_435_761 % 2**64:016x}{number:016x}", view) for number in numbers]


def pooled(keys: Sequence[Key], width: int = 6) -> Tensor:
    """What the trunk of these tests gives for a key: it is told by the key alone."""
    return torch.tensor([[int(key.digest[16:], 16) + 0.25 * key.view + 1000 * x for x in range(width)] for key in keys])


def write(kept: TrunkFeatures, numbers: Sequence[int]) -> None:
    keys = keys_of(numbers)
    kept.write(keys, {"pooled": pooled(keys), "map": pooled(keys, 8).view(-1, 2, 2, 2)})


def shards(store: FeatureStore) -> list[Path]:
    return sorted(store.root.glob("*/*.safetensors"))


def run_python(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    program = "import sys, torch\nfrom pathlib import Path\nfrom heads.features import FeatureStore, Key\n" + textwrap.dedent(
        code
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


@pytest.fixture
def kept(store: FeatureStore) -> TrunkFeatures:
    return store.trunk(TRUNK)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_batch_comes_in_the_order_of_the_keys_across_shards(kept: TrunkFeatures, in_memory: bool) -> None:
    for start in range(0, 60, 7):
        write(kept, range(start, min(start + 7, 60)))
    keys = keys_of(random.Random(0).sample(range(60), 50))
    features = kept.open(keys, ["pooled", "map"])
    features = features.in_memory() if in_memory else features
    assert len(features) == 50
    assert features.num_bytes == 50 * (6 + 8) * 4
    for positions in torch.randperm(50, generator=torch.Generator().manual_seed(0)).split(16):
        batch = features[positions]
        asked = [keys[position] for position in positions]
        assert torch.equal(batch["pooled"], pooled(asked))
        assert torch.equal(batch["map"], pooled(asked, 8).view(-1, 2, 2, 2))
    assert torch.equal(features[torch.tensor([3, 3, 49])]["pooled"], pooled([keys[3], keys[3], keys[49]]))
    assert features[torch.tensor([], dtype=torch.long)]["map"].shape == (0, 2, 2, 2)
    with pytest.raises(IndexError):
        features[torch.tensor([50])]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_missing_and_what_is_read_agree_with_a_plain_dictionary(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # Digests that begin and end alike, with zero bytes at either end, tell a packed comparison that stops short.
    end = st.sampled_from(["00", "01", "10", "ff"])
    digest = st.builds(lambda first, last: first + "0" * 28 + last, end, end)
    key = st.builds(Key, digest, st.sampled_from([0, 1, 255, 256, 2**32 - 1]))
    kept = FeatureStore(tmp_path_factory.mktemp("features")).trunk(TRUNK)
    plain: dict[Key, int] = {}
    for keys in data.draw(st.lists(st.lists(key, min_size=1, max_size=8), max_size=5)):
        values = [plain.setdefault(key, len(plain)) for key in keys]
        kept.write(keys, {"x": torch.tensor(values, dtype=torch.float32)})
    asked = data.draw(st.lists(key, max_size=12)) + data.draw(st.lists(st.sampled_from(list(plain)) if plain else st.nothing()))
    assert kept.missing(asked, ["x"]) == list(dict.fromkeys(key for key in asked if key not in plain))
    if held := [key for key in asked if key in plain]:
        features = kept.open(held, ["x"])
        assert features[torch.arange(len(held))]["x"].tolist() == [plain[key] for key in held]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_bit_of_every_dtype_comes_back(kept: TrunkFeatures, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, (64, 3, dtype.itemsize // 2), dtype=torch.int16, generator=generator)
    given_values = bits.view(dtype).squeeze(2)
    kept.write(keys_of(range(64)), {"x": given_values})
    read = kept.open(keys_of(range(64)), ["x"])
    assert read.layouts == {"x": Layout((3,), dtype)}
    for features in (read, read.in_memory()):
        found = features[torch.arange(64)]["x"]
        assert found.dtype == dtype
        assert torch.equal(found.view(torch.int16), given_values.view(torch.int16))


def test_a_shard_is_a_plain_safetensors_file_and_the_same_content_has_the_same_name(tmp_path: Path) -> None:
    names = []
    for folder in ("a", "b"):
        store = FeatureStore(tmp_path / folder)
        write(store.trunk(TRUNK), range(5))
        (path,) = shards(store)
        assert torch.equal(safetensors.torch.load_file(path)["pooled"], pooled(keys_of(range(5))))
        names.append((path.name, path.read_bytes()))
    assert names[0] == names[1]


def test_a_view_of_one_tensor_and_that_tensor_may_be_two_taps(kept: TrunkFeatures) -> None:
    keys = keys_of(range(4))
    both = pooled(keys)
    kept.write(keys, {"all": both, "same": both.view(4, 2, 3), "part": both[:, ::2]})
    batch = kept.open(keys, ["all", "same", "part"])[torch.arange(4)]
    assert torch.equal(batch["all"], both)
    assert torch.equal(batch["same"], both.view(4, 2, 3))
    assert torch.equal(batch["part"], both[:, ::2])


def test_a_sample_is_missing_until_every_tap_asked_for_is_stored(kept: TrunkFeatures) -> None:
    keys = keys_of(range(4))
    kept.write(keys, {"pooled": pooled(keys)})
    assert kept.missing(keys, ["pooled"]) == []
    assert kept.missing(keys, ["pooled", "map"]) == keys
    kept.write(keys[1:], {"map": pooled(keys[1:], 8)})
    assert kept.missing(keys, ["map", "pooled"]) == keys[:1]
    assert kept.missing(keys_of(range(4), view=1), ["pooled"]) == keys_of(range(4), view=1)
    with pytest.raises(FeatureError, match=r"1 of 4 samples .* 'map'"):
        kept.open(keys, ["pooled", "map"])
    read = kept.open(keys[:0:-1], ["pooled", "map"])[torch.arange(3)]
    assert torch.equal(read["map"], pooled(keys[:0:-1], 8))
    assert torch.equal(read["pooled"], pooled(keys[:0:-1]))


def test_two_processes_write_and_read_at_once(store: FeatureStore, kept: TrunkFeatures) -> None:
    code = """
        kept = FeatureStore(Path(sys.argv[1])).trunk(sys.argv[2])
        for start in range(100, 300, 5):
            keys = [Key(f"{number * 2_654_435_761 % 2**64:016x}{number:016x}") for number in range(start, start + 5)]
            kept.write(keys, {"pooled": torch.tensor([[key + 1000.0 * x for x in range(6)] for key in range(start, start + 5)])})
    """
    other = run_python(code, store.root, TRUNK)
    # Both write the numbers 100 to 199; this process begins when the other's first shard is there.
    while not kept.num_samples("pooled") and other.poll() is None:
        time.sleep(0.02)
    keys, counts, starts, works = keys_of(range(300)), [300], list(range(0, 200, 5)), True
    while works or starts:
        works = other.poll() is None
        if starts:
            first = starts.pop()
            mine = keys_of(range(first, first + 5))
            kept.write(mine, {"pooled": pooled(mine)})
        elif works:
            time.sleep(0.02)
        lacking = set(kept.missing(keys, ["pooled"]))
        counts.append(len(lacking))
        if held := [key for key in keys if key not in lacking]:
            assert torch.equal(kept.open(held, ["pooled"])[torch.arange(len(held))]["pooled"], pooled(held))
    other.communicate()
    assert other.returncode == 0
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0
    assert kept.num_samples("pooled") == 300


def test_a_writer_killed_in_the_middle_leaves_nothing_half_visible(store: FeatureStore, kept: TrunkFeatures) -> None:
    write(kept, range(3))
    code = """
        kept, content = FeatureStore(Path(sys.argv[1])).trunk(sys.argv[2]), torch.randn(16, 1_000_000)
        number = 0
        while True:
            kept.write([Key(f"{number:08x}" + "f" * 16 + f"{row:08x}") for row in range(16)], {"big": content})
            number += 1
    """
    writer = run_python(code, store.root, TRUNK)
    folder = store.root / TRUNK

    def half_written() -> list[Path]:
        return [path for path in folder.glob(".partial-*") if 0 < path.stat().st_size < 62_000_000]

    deadline = time.monotonic() + 60
    found: list[Path] = []
    while len(shards(store)) < 2 and writer.poll() is None:
        time.sleep(0.02)
    while not found and time.monotonic() < deadline:
        try:
            if half_written():
                writer.send_signal(signal.SIGSTOP)
                if not (found := half_written()):
                    writer.send_signal(signal.SIGCONT)
        except FileNotFoundError:
            continue
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert len(found) == 1
    fresh = FeatureStore(store.root)
    assert fresh.verify() == []
    assert shards(store)
    (status,) = fresh.status()
    assert status.num_samples == 3 + 16 * (len(shards(store)) - 1)
    assert fresh.trunk(TRUNK).missing(keys_of(range(4)), ["pooled"]) == keys_of([3])
    write(fresh.trunk(TRUNK), [3])
    assert found[0].exists(), "it may be another writer's that is at work"
    os.utime(found[0], (time.time() - 7200,) * 2)
    write(FeatureStore(store.root).trunk(TRUNK), [4])
    assert not found[0].exists()


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("where", ["length", "header", "data", "cut in the data", "cut in the header", "empty"])
def test_a_damaged_shard_is_found_and_its_samples_are_computed_again(
    store: FeatureStore, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    for start in (0, 10):
        write(store.trunk(TRUNK), range(start, start + 10))
    path = next(
        path for path in shards(store) if torch.equal(safetensors.torch.load_file(path)["pooled"][0], pooled(keys_of([10]))[0])
    )
    size = path.stat().st_size
    if where.startswith("cut") or where == "empty":
        os.truncate(path, {"cut in the data": size - 1, "cut in the header": 100, "empty": 0}[where])
    else:
        _flip(path, {"length": 1, "header": 60, "data": size - 5}[where])
    fresh = FeatureStore(store.root)
    assert [(damaged.trunk, damaged.name) for damaged in fresh.verify()] == [(TRUNK, path.name)]
    assert path.exists(), "to verify changes nothing"
    keys = keys_of(range(20))
    lacking = fresh.trunk(TRUNK).missing(keys, ["pooled", "map"])
    assert lacking == keys[10:]
    assert "damaged" in caplog.text
    assert not path.exists()
    write(fresh.trunk(TRUNK), range(10, 20))
    assert fresh.trunk(TRUNK).missing(keys, ["pooled", "map"]) == []
    assert torch.equal(fresh.trunk(TRUNK).open(keys, ["pooled"])[torch.arange(20)]["pooled"], pooled(keys))
    assert fresh.verify() == []


def test_every_flipped_bit_of_a_small_shard_is_found(store: FeatureStore) -> None:
    write(store.trunk(TRUNK), range(2))
    (path,) = shards(store)
    whole = path.read_bytes()
    for offset in range(len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1 << offset % 8]) + whole[offset + 1 :])
        assert len(store.verify()) == 1, offset
    path.write_bytes(whole)
    assert store.verify() == []


def test_damage_costs_only_what_no_other_shard_holds(store: FeatureStore) -> None:
    write(store.trunk(TRUNK), range(6))
    write(store.trunk(TRUNK), range(4, 10))
    for path in shards(store):
        if torch.equal(safetensors.torch.load_file(path)["pooled"], pooled(keys_of(range(6)))):
            _flip(path, path.stat().st_size - 1)
    kept = FeatureStore(store.root).trunk(TRUNK)
    assert kept.missing(keys_of(range(10)), ["pooled", "map"]) == keys_of(range(4))


def test_a_reader_goes_on_over_shards_that_a_prune_removed(store: FeatureStore, kept: TrunkFeatures) -> None:
    write(kept, range(8))
    keys = keys_of(range(8))
    features = kept.open(keys, ["pooled"])
    freed = store.prune(0)
    assert freed.num_shards == 1
    assert freed.num_bytes > 0
    assert store.status() == []
    assert not list(store.root.iterdir())
    assert torch.equal(features[torch.arange(8)]["pooled"], pooled(keys))
    assert kept.missing(keys, ["pooled"]) == keys
    write(kept, range(8))
    assert kept.missing(keys, ["pooled"]) == []


def test_a_shard_that_goes_between_finding_and_opening_is_missing(kept: TrunkFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    write(kept, range(4))
    keys, open_shard = keys_of(range(4)), ShardFolder.open
    assert kept.missing(keys, ["map"]) == []

    def remove_and_open(folder: ShardFolder, name: str) -> Opened:
        folder.remove(name)
        return open_shard(folder, name)

    monkeypatch.setattr(ShardFolder, "open", remove_and_open)
    with pytest.raises(FeatureError, match="4 of 4"):
        kept.open(keys, ["map"])


def _aged_stores(store: FeatureStore) -> list[str]:
    """Three trunks of two equal shards each, the first used least recently; the oldest shard of each was written first."""
    trunks = [trunk_id({"cut": cut}) for cut in range(3)]
    for age, trunk in zip((300, 200, 100), trunks, strict=True):
        for number, start in enumerate((0, 10)):
            before = set(shards(store))
            write(store.trunk(trunk), range(start, start + 10))
            (path,) = set(shards(store)) - before
            os.utime(path, (time.time() - 1000 + number,) * 2)
        os.utime(store.root / trunk / ".used", (time.time() - age,) * 2)
    return trunks


def test_a_prune_removes_what_was_used_least_recently(store: FeatureStore) -> None:
    trunks = _aged_stores(store)
    assert [status.trunk for status in store.status()] == trunks
    one = shards(store)[0].stat().st_size
    # Opened by a process of its own, the first kept becomes the one used last.
    FeatureStore(store.root).trunk(trunks[0]).open(keys_of([0]), ["pooled"])
    assert store.prune(6 * one).num_shards == 0
    freed = store.prune(4 * one - 1)
    assert (freed.num_shards, freed.num_bytes) == (3, 3 * one)
    assert [(status.trunk, status.num_shards) for status in store.status()] == [(trunks[2], 1), (trunks[0], 2)]
    fresh = FeatureStore(store.root)
    assert fresh.trunk(trunks[2]).missing(keys_of(range(20)), ["pooled"]) == keys_of(range(10))
    assert fresh.trunk(trunks[0]).missing(keys_of(range(20)), ["pooled"]) == []


def test_a_persons_own_files_stay_whatever_is_pruned_read_or_verified(
    store: FeatureStore, kept: TrunkFeatures, tmp_path: Path
) -> None:
    write(kept, range(10))
    (ours,) = shards(store)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    mine = {
        ours.with_name("model.safetensors"): safetensors.torch.save({"w": torch.ones(2)}),
        ours.with_name("0" * 31 + ".safetensors"): b"notes",
        # Named as a shard is, and whole, with and without a word of its maker.
        ours.with_name("1" * 32 + ".safetensors"): safetensors.torch.save({"w": torch.ones(2)}, {"format": "pt"}),
        ours.with_name("2" * 32 + ".safetensors"): safetensors.torch.save({"w": torch.ones(2)}),
        store.root / "3d-models.json": b"{}",
        elsewhere / ours.name: ours.read_bytes(),
    }
    for path, content in mine.items():
        path.write_bytes(content)
    link = ours.with_name("4" * 32 + ".safetensors")
    link.symlink_to(elsewhere / ours.name)
    (store.root / "5555555555555555").symlink_to(elsewhere, target_is_directory=True)
    fresh = FeatureStore(store.root)
    assert fresh.trunk(TRUNK).missing(keys_of(range(10)), ["pooled"]) == []
    assert fresh.verify() == []
    assert fresh.prune(0).num_shards == 1
    assert not ours.exists()
    assert {path: path.read_bytes() for path in mine} == mine
    assert link.is_symlink()
    assert [status.num_shards for status in fresh.status()] == [2], "the two that are named as shards are"


def test_to_ask_what_is_missing_is_no_use(store: FeatureStore) -> None:
    trunks = _aged_stores(store)
    FeatureStore(store.root).trunk(trunks[0]).missing(keys_of(range(3)), ["pooled"])
    assert [status.trunk for status in store.status()] == trunks


def test_the_status_counts_samples_once(store: FeatureStore, kept: TrunkFeatures) -> None:
    write(kept, range(6))
    kept.write(keys_of(range(4, 10)), {"pooled": pooled(keys_of(range(4, 10)))})
    (status,) = store.status()
    assert status.num_samples == 10
    assert status.num_shards == 2
    assert status.num_bytes == sum(path.stat().st_size for path in shards(store))
    assert status.taps == {"map": (6, Layout((2, 2, 2), torch.float32)), "pooled": (10, Layout((6,), torch.float32))}
    assert abs(status.used_at.timestamp() - time.time()) < 60


def test_a_readers_memory_stays_as_it_is_over_ten_times_the_data(tmp_path: Path) -> None:
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        torch.set_num_threads(1)
        kept = FeatureStore(Path(sys.argv[1])).trunk(sys.argv[2])
        for num_samples in (200, 2000):
            keys = [Key(f"{number:032x}") for number in range(num_samples)]
            assert not kept.missing(keys, ["map"])
            features = kept.open(keys, ["map"])
            for positions in torch.randperm(len(keys)).split(32):
                assert torch.equal(features[positions]["map"][:, 0, 0], positions.float())
            status = Path("/proc/self/status").read_text()
            print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    """
    kept = FeatureStore(tmp_path).trunk(TRUNK)
    for start in range(0, 2000, 20):
        values = torch.arange(start, start + 20.0).view(20, 1, 1).expand(20, 64, 196)
        kept.write([Key(f"{number:032x}") for number in range(start, start + 20)], {"map": values})
    small_kb, large_kb = map(int, run_python(code, tmp_path, TRUNK).communicate()[0].split())
    # The shards are a hundred megabytes, a third of what the process has.
    assert large_kb <= 1.1 * small_kb


def test_threads_read_the_same_features_at_once(kept: TrunkFeatures) -> None:
    for start in range(0, 200, 20):
        write(kept, range(start, start + 20))
    keys = keys_of(range(200))
    features = kept.open(keys, ["map"])

    def read(seed: int) -> bool:
        positions = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
        return torch.equal(features[positions]["map"], pooled([keys[i] for i in positions], 8).view(-1, 2, 2, 2))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(16)))


def test_a_trunk_id_tells_its_parts_and_not_their_order() -> None:
    assert trunk_id({"a": 1, "b": [1.5, None]}) == trunk_id({"b": [1.5, None], "a": 1})
    assert len({trunk_id({"a": 1}), trunk_id({"a": "1"}), trunk_id({"a": 2}), trunk_id({"b": 1}), trunk_id({})}) == 5
    with pytest.raises(HeadsError, match="JSON"):
        trunk_id({"a": torch.float32})
    with pytest.raises(HeadsError, match="JSON"):
        trunk_id({"a": float("nan")})


def test_what_does_not_fit_is_refused_and_nothing_is_written(store: FeatureStore, kept: TrunkFeatures) -> None:
    keys = keys_of(range(3))
    for tensors, message in (
        ({"x": torch.zeros(2, 4)}, "3 keys"),
        ({"x": torch.zeros(3, 0)}, "no other is 0"),
        ({"x": torch.zeros(3, 4, dtype=torch.int64)}, "float32, float16 or bfloat16"),
        ({}, "one named tap"),
        ({"": torch.zeros(3, 4)}, "one named tap"),
    ):
        with pytest.raises(HeadsError, match=message):
            kept.write(keys, tensors)
    for key, message in ((Key("xyz"), "32 hex digits"), (Key("0" * 30 + "  "), "32 hex"), (Key("0" * 32, -1), "a view")):
        with pytest.raises(HeadsError, match=message):
            kept.missing([key], ["x"])
    with pytest.raises(HeadsError, match="no trunk id"):
        store.trunk("../outside")
    with pytest.raises(HeadsError, match="name one or more"):
        kept.missing(keys, [])
    assert kept.write([], {"x": torch.zeros(0, 4)}) == 0
    assert shards(store) == []


def test_a_tap_holds_one_shape_and_dtype(store: FeatureStore, kept: TrunkFeatures) -> None:
    kept.write(keys_of([0]), {"x": torch.zeros(1, 4)})
    for writer in (kept, FeatureStore(store.root).trunk(TRUNK)):
        with pytest.raises(HeadsError, match=r"holds float32 \(4,\) and was given float16 \(4,\)"):
            writer.write(keys_of([1]), {"x": torch.zeros(1, 4).half()})
