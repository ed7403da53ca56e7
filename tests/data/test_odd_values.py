"""Whatever stands in place of a value: a record, or an error of ours; with "skip" the other records are read."""

from __future__ import annotations

import random

import pytest

from lens_adapter.data.examples import Examples
from lens_adapter.data.masks import ShownSize, decode
from lens_adapter.errors import InputError
from tests.attacks.readers import BOX, CONTENTS, LIVE, LOOP, ODD, altered, hub, run
from tests.data.formats import write_image, write_levels


def test_readers_let_no_error_but_ours_out_and_come_to_an_end():
    found = run(240, seed=0)
    assert (found["foreign"], found["hangs"]) == (0, 0)
    assert found["read"] > 50 and found["refused"] > 50


@pytest.mark.parametrize("read", CONTENTS, ids=lambda read: read.__name__)
@pytest.mark.filterwarnings("ignore")
def test_odd_values_break_nothing_but_their_record(tmp_path, read, monkeypatch):
    monkeypatch.setattr("lens_adapter.data.breakage.logger.warning", lambda *_: None)
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / "images" / name)
    write_levels(tmp_path / "masks" / "a.png", BOX)
    monkeypatch.chdir(tmp_path / "images")  # where the rows' pictures are
    rng = random.Random(0)
    odd = ODD + [value for value in LIVE if value is not LOOP] * (read is hub)
    read_well = loaded = 0
    for _ in range(300):
        try:
            examples = Examples(read(tmp_path, altered(CONTENTS[read], rng, odd)), "skip")
            read_well += 1
        except InputError as error:
            assert len(str(error)) < 1500
            continue
        for example in examples:
            assert example.mask.dtype == bool and example.mask.shape == (8, 12)
            loaded += 1
        assert max([0, *(len(str(error)) for error in examples.broken)]) < 1500, [
            str(error)[:300] for error in examples.broken
        ]
    assert read_well > 50 and loaded > 10


@pytest.mark.filterwarnings("ignore")
def test_odd_values_are_no_masks_or_whole_ones():
    rng = random.Random(1)
    values = ODD + LIVE
    values += (
        [[value] for value in values] + [[value] * 12 for value in values] + [[[value] * 12] * 8 for value in values]
    )
    values += [{"size": [8, 12], key: value} for value in values for key in ("counts", "polygons")]
    values += [rng.sample(ODD, 3) for _ in range(300)]
    for value in values:
        try:
            mask = decode(value, ShownSize((8, 12), 6))
        except InputError as error:
            assert len(str(error)) < 1500
        else:
            assert mask.dtype == bool and mask.shape == (8, 12)
