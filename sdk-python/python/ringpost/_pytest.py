"""The pytest fixture ``ringpost_server``; pytest finds it by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ringpost.testing import Server


@pytest.fixture
def ringpost_server() -> Iterator[Server]:
    """A `ringpost.testing.Server` on a free port, with a log in a temporary folder, for one test."""
    # Not before a test asks for it: pytest loads this file for every program that has ringpost installed.
    from ringpost.testing import Server

    with Server() as server:
        yield server
