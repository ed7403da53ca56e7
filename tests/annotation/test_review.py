"""The page for the eye: one file, everything escaped, the least sure first."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from lens_adapter import annotate
from lens_adapter.annotation import rethreshold, review
from lens_adapter.annotation.rows import read_rows, shards_in
from lens_adapter.errors import InputError
from tests.annotation.standin import standin, write_pictures

NASTY = "<b>&\"the' {thing}"


class Page(HTMLParser):
    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.images, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.images += [dict(attributes)] if tag == "img" else []

    def handle_data(self, data):
        self.text += data

    def scores(self) -> list[float]:
        return [float(text) for text in re.findall(r"(\d\.\d\d)\d{5}\.png", self.text)]


def test_the_page_is_one_file_with_the_least_sure_first(tmp_path):
    write_pictures(tmp_path / "<i>", 12, (40, 30))
    (tmp_path / "<i>" / "broken<u>.png").write_bytes(b"no picture")
    annotate(standin, tmp_path / "<i>", tmp_path / "out", prompts=["a dog", NASTY], shard_size=5)
    scores = sorted(row["score"] for row in read_rows(shards_in(tmp_path / "out")) if not row["error"])
    rethreshold(tmp_path / "out", scores[15], preview=4, data=tmp_path / "<i>")
    page, rows = Page(tmp_path / "out" / "_preview.html"), list(read_rows(shards_in(tmp_path / "out")))
    found = sorted(row["score"] for row in rows if row["found"])
    below = sorted((row["score"] for row in rows if not row["found"] and not row["error"]), reverse=True)
    assert len(found) == 9 and len(below) == 15
    assert page.scores() == [round(score, 2) for score in found[:4] + below[:4]]
    assert len(page.images) == 4 + len(below[:4])
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.images)
    assert not {"script", "link", "iframe", "b>", "u", "i>"} & set(page.tags)
    assert NASTY in page.text and "broken<u>.png" in page.text and "Annotations of" in page.text
    assert f"{len(found)} rows found, {len(below)} rows not found, 2 rows with an error" in page.text
    raw = re.sub('base64,[^"]*', "", (tmp_path / "out" / "_preview.html").read_text())
    assert "http" not in raw and f"score threshold {scores[15]:g}" in page.text


def test_the_masks_drawn_are_those_of_their_pictures(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        review, "_drawn", lambda row, picture, color: drawn.setdefault(row["image"], picture.size) and ""
    )
    for k in range(7):
        Image.new("RGB", (20 + k, 10), "black").save(tmp_path / f"{k}.png")
    annotate(standin, tmp_path, tmp_path / "out", prompts=["a", "b"], shard_size=3, preview=50)
    assert drawn == {f"{k}.png": (20 + k, 10) for k in range(7)}


def test_a_picture_that_went_away_is_said_on_the_page(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    annotate(standin, tmp_path / "pictures", tmp_path / "out", prompts="a dog")
    digest_keeping = (tmp_path / "pictures" / "00001.png").stat().st_size
    (tmp_path / "pictures" / "00001.png").write_bytes(bytes(digest_keeping))
    rethreshold(tmp_path / "out", 0.2, preview=5, data=tmp_path / "pictures")
    assert "cannot be read as an image" in Page(tmp_path / "out" / "_preview.html").text


def test_other_data_are_not_shown_under_these_annotations(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    write_pictures(tmp_path / "others", 4)
    annotate(standin, tmp_path / "pictures", tmp_path / "out", prompts="a dog")
    with pytest.raises(InputError, match="data: there"):
        rethreshold(tmp_path / "out", 0.2, preview=5, data=tmp_path / "others")
    with pytest.raises(InputError, match="A preview shows the pictures"):
        rethreshold(tmp_path / "out", 0.2, preview=5)
