"""What a killed command leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

from flows.settings import OWNER, child_environment, read_settings
from flows.stack import end_orphans


def _server(storage: Path, owner: int) -> "subprocess.Popen[bytes]":
    env = os.environ | child_environment(read_settings(storage)) | {OWNER: str(owner)}
    return subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "prefect.server.api.server:create_app"], env=env
    )


def test_a_server_whose_owner_was_killed_is_ended_and_every_other_one_lives_on(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    orphan, owned, foreign = _server(here, gone.pid), _server(here, os.getpid()), _server(elsewhere, gone.pid)
    try:
        assert end_orphans(read_settings(here)) == [orphan.pid]
        assert orphan.wait(10) != 0
        assert owned.poll() is None
        assert foreign.poll() is None
    finally:
        for process in (orphan, owned, foreign):
            process.kill()
            process.wait()
