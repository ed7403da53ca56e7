from __future__ import annotations

import pytest

from lens_adapter import builtin
from lens_adapter.app.examples import EXAMPLES, PICTURE_SIZE


@pytest.fixture(scope="session")
def adapter():
    """The models that ship, as the page has them."""
    with builtin.load_head().attach(*builtin.load_base()) as adapter:
        yield adapter


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The pictures of the examples, as a visitor would upload them."""
    folder = tmp_path_factory.mktemp("examples")
    for shown in EXAMPLES:
        shown.scene().draw(PICTURE_SIZE).save(folder / f"{shown.index}.png")
    return [folder / f"{shown.index}.png" for shown in EXAMPLES]
