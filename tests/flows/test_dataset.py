"""Data versions in real git repositories with real DVC."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows import dataset
from flows.dataset.pointer import parse_pointer
from flows.errors import AskedWrongly, Busy, HeadstartError
from flows.landing import ingest
from flows.landing.digits import bitmap
from flows.manifest import split_counts
from flows.sample_files import locate, locate_mask

ROOT = Path(__file__).parents[2]


def git(workspace: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(workspace), *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(autouse=True)
def no_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "no-such-gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


def draw(folder: Path, name: str, levels: int, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(bitmap(bytes([number, levels, *range(62)]), 8))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with twenty images of each of two classes in it."""
    folder = tmp_path_factory.mktemp("made") / "workspace"
    for number in range(40):
        draw(folder.parent / "source" / str(3 + number % 2), f"{number}.bmp", number, 0)
    dataset.init_workspace(folder)
    ingest(folder.parent / "source", folder / "data")
    dataset.record_version(folder, "first")
    return folder


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "workspace"))


def add_image(workspace: Path) -> None:
    draw(workspace.parent / "extra" / "3", "new.bmp", 0, 1)
    ingest(workspace.parent / "extra", workspace / "data")


def test_a_new_workspace_is_committed_clean_and_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = dataset.init_workspace(tmp_path / "new")
    assert git(folder, "status", "--porcelain") == ""
    assert git(folder, "show", "--name-only", "--format=").split() == [
        ".dvc/.gitignore",
        ".dvc/config",
        ".dvcignore",
        ".gitignore",
    ]
    assert "url = ../.headstart/remote" in git(folder, "show", "HEAD:.dvc/config")
    dataset.init_workspace(folder)
    assert git(folder, "rev-list", "--count", "HEAD").strip() == "1"
    assert "user" not in (folder / ".git/config").read_text()
    assert capsys.readouterr().out == ""


def test_a_workspace_may_start_in_a_repository_with_work_of_its_own(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".gitignore").write_text("*.log")
    git(tmp_path, "add", "notes.txt")
    dataset.init_workspace(tmp_path)
    assert git(tmp_path, "status", "--porcelain") == "A  notes.txt\n"
    assert (tmp_path / ".gitignore").read_text().splitlines() == ["*.log", "/data", "/.headstart/"]


def test_a_version_is_committed_with_its_objects_in_cache_and_remote(workspace: Path) -> None:
    version = dataset.read_version(workspace)
    assert version.digest in (workspace / "data.dvc").read_text()
    assert git(workspace, "show", "--name-only", "--format=", version.revision).split() == ["data.dvc"]
    assert git(workspace, "status", "--porcelain") == ""
    for folder in version.objects:
        assert all((folder / s.digest[:2] / s.digest[2:]).is_file() for s in version.samples)
    assert {sample.labels["label"] for sample in version.samples} == {"3", "4"}


def test_the_committed_version_of_this_repository_is_the_digits(tmp_path: Path) -> None:
    made = dataset.init_workspace(tmp_path / "made")
    ingest("digits", made / "data")
    dataset.record_version(made, "digits")
    assert (ROOT / "data.dvc").read_bytes() == (made / "data.dvc").read_bytes()
    assert (ROOT / ".dvc/config").read_bytes() == (made / ".dvc/config").read_bytes()


def test_recording_what_is_recorded_commits_nothing(made: Path, workspace: Path) -> None:
    before = git(workspace, "rev-parse", "HEAD")
    ingest(made.parent / "source", workspace / "data")
    dataset.record_version(workspace, "again")
    assert git(workspace, "rev-parse", "HEAD") == before
    assert git(workspace, "status", "--porcelain") == ""


def test_a_fresh_clone_that_ingests_the_same_stays_clean_and_has_its_objects(made: Path, workspace: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(workspace), str(clone))
    with pytest.raises(AskedWrongly, match="headstart data ingest"):
        dataset.read_version(clone)
    assert dataset.restore(clone) is False
    ingest(made.parent / "source", clone / "data")
    version = dataset.record_version(clone, "again")
    assert git(clone, "status", "--porcelain") == ""
    assert version.revision == git(workspace, "rev-parse", "HEAD").strip()
    assert all(locate(version, sample).is_relative_to(clone / ".dvc/cache") for sample in version.samples[:20])


def test_only_data_dvc_is_committed_whatever_else_is_staged(workspace: Path) -> None:
    (workspace / "other.txt").write_text("staged")
    git(workspace, "add", "other.txt")
    add_image(workspace)
    version = dataset.record_version(workspace, "one more")
    assert git(workspace, "show", "--name-only", "--format=%s", "HEAD").split("\n")[:3] == ["one more", "", "data.dvc"]
    assert git(workspace, "status", "--porcelain") == "A  other.txt\n"
    assert len(version.samples) == 41


def test_history_and_checkout_go_back_to_an_earlier_version(workspace: Path) -> None:
    first = dataset.read_version(workspace)
    add_image(workspace)
    second = dataset.record_version(workspace, "one more")
    records = dataset.history(workspace)
    assert [(r.digest, r.revision, r.message) for r in records] == [
        (second.digest, second.revision, "one more"),
        (first.digest, first.revision, "first"),
    ]
    assert [sum(record.splits.values()) for record in records] == [41, 40]
    assert dataset.checkout(workspace, first.revision) == first
    assert not (workspace / "data/images/3/new.bmp").exists()
    assert dataset.status(workspace).dirty is False
    assert dataset.checkout(workspace, second.digest[:12]) == second
    with pytest.raises(AskedWrongly, match="nosuch"):
        dataset.checkout(workspace, "nosuch")


def test_checkout_never_drops_changes_that_no_version_holds(workspace: Path) -> None:
    first = dataset.read_version(workspace).revision
    add_image(workspace)
    image = workspace / "data/images/3/new.bmp"
    with pytest.raises(AskedWrongly, match=r"e\.g\. images/3/new\.bmp\. .*move them out of") as refused:
        dataset.checkout(workspace, first)
    assert image.exists()
    assert f"move them out of {workspace / 'data'}" in str(refused.value)
    shutil.move(image, workspace.parent)
    shutil.move(workspace / "data/manifest.csv", workspace.parent)
    dataset.checkout(workspace, first)
    assert dataset.status(workspace).dirty is False


def test_a_version_is_read_as_recorded_even_where_the_working_copy_differs(workspace: Path) -> None:
    before = dataset.read_version(workspace)
    add_image(workspace)
    status = dataset.status(workspace)
    assert (status.version, status.dirty) == (before, True)
    assert status.splits == split_counts(before.samples)
    assert sum(status.classes["label"]["3"].values()) == 20


def test_a_missing_working_copy_is_restored_from_the_remote(workspace: Path) -> None:
    shutil.rmtree(workspace / "data")
    shutil.rmtree(workspace / ".dvc/cache")
    assert dataset.restore(workspace) is True
    assert dataset.status(workspace).dirty is False


def test_a_working_copy_left_behind_by_git_is_brought_up_before_it_is_built_on(workspace: Path) -> None:
    add_image(workspace)
    newer = dataset.record_version(workspace, "one more")
    dataset.checkout(workspace, "HEAD~1")
    git(workspace, "checkout", "HEAD", "--", "data.dvc")
    assert dataset.restore(workspace) is True
    assert (workspace / "data/images/3/new.bmp").exists()
    assert dataset.status(workspace).version == newer
    draw(workspace.parent / "extra" / "3", "newest.bmp", 0, 2)
    ingest(workspace.parent / "extra", workspace / "data")
    assert dataset.restore(workspace) is True
    assert (workspace / "data/images/3/newest.bmp").exists()


def test_files_changed_by_hand_are_refused_and_data_dvc_stays(workspace: Path) -> None:
    before = (workspace / "data.dvc").read_bytes()
    (workspace / "data/images/3/0.bmp").write_bytes(b"by hand")
    with pytest.raises(HeadstartError, match=r"images/3/0\.bmp"):
        dataset.record_version(workspace, "wrong")
    assert (workspace / "data.dvc").read_bytes() == before


def test_what_is_said_of_files_changed_by_hand_can_be_followed(made: Path, workspace: Path) -> None:
    changed, gone = workspace / "data/images/3/0.bmp", workspace / "data/images/3/2.bmp"
    changed.write_bytes(b"by hand")
    gone.unlink()
    with pytest.raises(
        HeadstartError, match=r"Move those .* out of .*, mend them at their source .* `headstart data ingest SOURCE`"
    ):
        dataset.record_version(workspace, "wrong")
    shutil.move(changed, workspace.parent)
    ingest(made.parent / "source", workspace / "data")
    assert dataset.record_version(workspace, "again").digest == dataset.read_version(made).digest
    assert (workspace.parent / "0.bmp").read_bytes() == b"by hand"


def test_a_push_that_fails_commits_nothing(workspace: Path) -> None:
    before = (workspace / "data.dvc").read_bytes()
    shutil.rmtree(workspace / ".headstart/remote")
    (workspace / ".headstart/remote").write_text("not a folder")
    add_image(workspace)
    with pytest.raises(HeadstartError, match="DVC failed"):
        dataset.record_version(workspace, "lost")
    assert (workspace / "data.dvc").read_bytes() == before
    assert git(workspace, "log", "-1", "--format=%s").strip() == "first"


def test_a_sample_is_found_in_cache_remote_or_working_copy_and_nowhere_else(workspace: Path) -> None:
    version = dataset.read_version(workspace)
    sample = version.samples[0]
    cache, remote = version.objects
    assert locate(version, sample).is_relative_to(cache)
    shutil.rmtree(cache)
    assert locate(version, sample).is_relative_to(remote)
    shutil.rmtree(remote)
    assert locate(version, sample) == version.data / sample.file
    (version.data / sample.file).write_bytes(b"another image")
    with pytest.raises(AskedWrongly, match=sample.digest):
        locate(version, sample)


@pytest.fixture
def masked(workspace: Path) -> Path:
    """The workspace with ten masked pictures more."""
    source = workspace.parent / "pairs"
    for number in range(10):
        draw(source / "images", f"{number}.bmp", number, 3)
        draw(source / "masks", f"{number}.bmp", number % 3, 0)
    ingest(source, workspace / "data")
    dataset.record_version(workspace, "masks")
    return workspace


def test_masks_come_with_a_version_and_are_found_wherever_images_are(masked: Path) -> None:
    version = dataset.read_version(masked)
    assert version.masks.keys() == {f"masks/{number}.bmp" for number in range(10)}
    assert {sum(mask.pixels.values()) for mask in version.masks.values()} == {64}
    file, mask = "masks/4.bmp", version.masks["masks/4.bmp"]
    for folder in version.objects:
        assert locate_mask(version, file) == folder / mask.digest[:2] / mask.digest[2:]
        shutil.rmtree(folder)
    assert locate_mask(version, file) == version.data / file
    (version.data / file).write_bytes(b"another mask")
    with pytest.raises(AskedWrongly, match=f"mask {file}.*{mask.digest}"):
        locate_mask(version, file)
    with pytest.raises(AskedWrongly, match=r"knows no mask masks/none\.png"):
        locate_mask(version, "masks/none.png")


def test_each_version_has_its_own_masks(masked: Path) -> None:
    newer = dataset.read_version(masked)
    assert dataset.checkout(masked, "HEAD~1").masks == {}
    assert dataset.checkout(masked, newer.revision).masks == newer.masks
    draw(masked.parent / "pairs" / "masks", "4.bmp", 9, 0)
    ingest(masked.parent / "pairs", masked / "data")
    newest = dataset.record_version(masked, "one mask mended")
    assert [sample.digest for sample in newest.samples] == [sample.digest for sample in newer.samples]
    assert newest.masks["masks/4.bmp"] != newer.masks["masks/4.bmp"]
    dataset.checkout(masked, "HEAD~1")
    git(masked, "checkout", "HEAD", "--", "data.dvc")
    assert dataset.restore(masked) is True, "the samples' table is the same, yet this is another version"
    assert dataset.status(masked).dirty is False


def test_a_mask_changed_by_hand_is_refused(masked: Path) -> None:
    (masked / "data/masks/4.bmp").write_bytes(b"by hand")
    with pytest.raises(HeadstartError, match=r"masks/4\.bmp"):
        dataset.record_version(masked, "wrong")


def test_a_version_made_before_masks_were_counted_gains_them_by_ingesting_again(masked: Path) -> None:
    counted = dataset.read_version(masked)
    (masked / "data/masks.csv").unlink()
    assert dataset.record_version(masked, "as an older one").masks == {}
    ingest(masked.parent / "pairs", masked / "data")
    again = dataset.record_version(masked, "counted")
    assert (again.digest, again.masks) == (counted.digest, counted.masks)


def test_what_is_no_workspace_or_has_no_data_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AskedWrongly, match="headstart init"):
        dataset.read_version(tmp_path)
    folder = dataset.init_workspace(tmp_path / "new")
    for ask in (dataset.read_version, lambda place: dataset.record_version(place, "none")):
        with pytest.raises(AskedWrongly, match="headstart data ingest"):
            ask(folder)
    assert dataset.history(folder) == []
    assert dataset.restore(folder) is False


def test_a_data_dvc_that_no_commit_holds_is_refused(workspace: Path) -> None:
    add_image(workspace)
    dataset.record_version(workspace, "one more")
    git(workspace, "reset", "--quiet", "--soft", "HEAD~1")
    with pytest.raises(AskedWrongly, match="no commit holds") as refused:
        dataset.read_version(workspace)
    assert len(dataset.record_version(workspace, "one more").samples) == 41
    git(workspace, "reset", "--quiet", "--soft", "HEAD~1")
    commit, checkout = re.findall("`([^`]*)`", str(refused.value))
    known = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(commit, shell=True, check=True, capture_output=True, env=os.environ | known)
    assert len(dataset.read_version(workspace).samples) == 41
    git(workspace, "reset", "--quiet", "--soft", "HEAD~1")
    dataset.checkout(workspace, checkout.removeprefix("headstart data checkout "))
    assert len(dataset.read_version(workspace).samples) == 40


def test_a_damaged_data_dvc_is_refused(workspace: Path) -> None:
    (workspace / "data.dvc").write_text("<<<<<<< HEAD\nouts:\n=======\n")
    with pytest.raises(AskedWrongly, match="git checkout"):
        dataset.read_version(workspace)


def test_an_ingest_killed_half_way_leaves_the_data_as_it_was(workspace: Path) -> None:
    extra = workspace.parent / "extra"
    for number in range(60):
        draw(extra / str(3 + number % 2), f"more-{number}.bmp", number, 1)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom flows.landing import ingest\n"
        "def stop(done, total):\n    done == 40 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "ingest(sys.argv[1], Path(sys.argv[2]), on_progress=stop)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(extra), str(workspace / "data")], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert dataset.status(workspace).dirty is False
    assert ingest(extra, workspace / "data").added == 60
    assert not (workspace / ".headstart/incoming").exists()
    assert len(dataset.record_version(workspace, "the rest").samples) == 100


LOCKED = """
import sys
from dvc.repo import Repo
with Repo(sys.argv[1]).lock:
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def dvc_at_work(workspace: Path) -> Iterator[None]:
    """Another DVC command holds the workspace for the block."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", LOCKED, str(workspace)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "held\n"
            yield
        finally:
            other.kill()


def test_another_dvc_command_at_work_is_waited_for_by_the_person_and_nothing_is_changed(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dvc.lock.DEFAULT_TIMEOUT", 0.5)
    before = (workspace / "data.dvc").read_bytes()
    add_image(workspace)
    with dvc_at_work(workspace):
        words = f"another DVC command is at work in {re.escape(str(workspace))}; wait until it ends, then run this again"
        with pytest.raises(Busy, match=words):
            dataset.record_version(workspace, "meanwhile")
        assert (workspace / "data.dvc").read_bytes() == before
        assert git(workspace, "log", "-1", "--format=%s").strip() == "first"
        shutil.rmtree(workspace / "data")
        with pytest.raises(Busy):
            dataset.restore(workspace)
    assert dataset.restore(workspace) is True
    add_image(workspace)
    assert dataset.record_version(workspace, "afterwards").digest != pointer_digest(before)


def pointer_digest(text: bytes) -> str:
    return parse_pointer(text.decode(), "data.dvc").digest


@pytest.mark.parametrize("missing", ["an image", "the listing"])
def test_a_version_that_is_nowhere_whole_is_not_checked_out_and_nothing_is_changed(workspace: Path, missing: str) -> None:
    first = dataset.read_version(workspace)
    add_image(workspace)
    second = dataset.record_version(workspace, "one more")
    gone = first.digest if missing == "the listing" else first.samples[0].digest
    for folder in first.objects:
        (folder / gone[:2] / gone[2:]).unlink()
    files = {path: path.read_bytes() for path in workspace.rglob("data/**/*") if path.is_file()}
    words = f"data version {first.digest} is not whole in the DVC cache or on the remote.*; nothing was changed"
    with pytest.raises(HeadstartError, match=words):
        dataset.checkout(workspace, "HEAD~1")
    assert {path: path.read_bytes() for path in files} == files
    assert pointer_digest((workspace / "data.dvc").read_bytes()) == second.digest
    shutil.rmtree(workspace / "data")
    assert dataset.restore(workspace) is (missing == "the listing"), "the newest lacks the image too"


def test_a_version_that_is_not_on_this_machine_is_told_with_where_it_was_looked_for(workspace: Path) -> None:
    version = dataset.read_version(workspace)
    for folder in version.objects:
        (folder / version.digest[:2] / version.digest[2:]).unlink()
    looked = ", ".join(map(str, version.objects))
    with pytest.raises(AskedWrongly) as told:
        dataset.read_version(workspace)
    assert str(told.value).startswith(
        f"the files of data version {version.digest} are not on this machine (looked in {looked}); "
    )
    assert "headstart data ingest SOURCE" in str(told.value)
    assert dataset.restore(workspace) is True, "what is in data/ may still be built on"
    (record,) = dataset.history(workspace)
    assert (record.digest, record.splits) == (version.digest, {})
    shutil.rmtree(workspace / "data")
    assert dataset.restore(workspace) is False
