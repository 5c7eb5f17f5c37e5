"""What the tests with several machines share: one object store for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.radosgw import Radosgw, missing, serving


@pytest.fixture(scope="session")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Radosgw]:
    """A real S3 server with one user, for the session."""
    if reason := missing():
        pytest.skip(reason)
    with serving(tmp_path_factory.mktemp("radosgw")) as server:
        yield server
