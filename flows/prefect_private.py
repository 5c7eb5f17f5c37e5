"""Private names of Prefect, used to start a server of its own sooner than Prefect does. All of them stand here.

They only save time. `pyproject.toml` bounds Prefect's version, and a test checks that the installed one has every name.
"""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from pathlib import Path

# What Prefect's client runs when it starts a server for itself, uvicorn with this application in this environment, but on a
# socket that listens already.
SERVER_APP = "prefect.server.api.server:create_app"
SERVER_PROGRAM = """
import socket, sys, uvicorn
server = uvicorn.Server(uvicorn.Config(sys.argv[1], factory=True, log_level="error", lifespan="on"))
server.run(sockets=[socket.socket(fileno=int(sys.argv[2]))])
sys.exit(0 if server.started else 3)
"""
SERVER_ENVIRONMENT = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
# The files of its database, and of the note that the catalogue of blocks is in it, in PREFECT_HOME.
DATABASE, MEMO = "prefect.db", "memo_store.toml"
# The tables that a new database has filled: its schema's revision, and the blocks that Prefect and its integrations offer.
CATALOGUE = frozenset({"alembic_version", "block_type", "block_schema", "block_schema_reference"})
# The table of keys and of the installation's own ids, which each server makes for itself where they are missing.
OF_ONE_INSTALLATION = "configuration"
_MIGRATIONS = ("server", "database", "_migrations", "versions", "sqlite")
_REVISION = re.compile(r'^(down_)?revision\s*=\s*["\'](\w+)["\']', re.MULTILINE)


def version() -> str:
    """The installed Prefect's version, which is found without importing it."""
    return metadata.version("prefect")


def head() -> str | None:
    """The revision to which the installed Prefect brings a SQLite database; None if its migrations do not end in one."""
    spec = importlib.util.find_spec("prefect")
    assert spec is not None, "Prefect is installed"
    assert spec.origin is not None, "Prefect is a package"
    ours, befores = set[str](), set[str]()
    for file in Path(spec.origin).parent.joinpath(*_MIGRATIONS).glob("*.py"):
        for down, revision in _REVISION.findall(file.read_text()):
            (befores if down else ours).add(revision)
    ends = ours - befores
    return ends.pop() if len(ends) == 1 else None
