"""The shipped models in miniature, in place of the real ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tiny.shipped import ship_tiny, use_shipped


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("builtin")
    ship_tiny(folder)
    with pytest.MonkeyPatch.context() as patch:
        use_shipped(patch, folder)
        yield
