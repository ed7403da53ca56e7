"""The page of the best, median and worst: one file, and what it shows."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from lens_adapter.evaluation import Finding, Overlap, evaluate
from lens_adapter.evaluation.gallery import choose, save_gallery
from tests.evaluation.test_runner import toy_examples
from tests.tiny.adapters import tiny_trio


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.images, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes)["src"])

    def handle_data(self, data):
        self.text += data


def test_the_gallery_is_one_file(tmp_path):
    adapter = tiny_trio()[0]
    result = evaluate(adapter, toy_examples())
    save_gallery(tmp_path / "page.html", result, adapter, toy_examples(), count=2)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert text.count("<figure>") == 2 + 1 + 2 + 2  # 5 with a target, 2 without, all of them named
    assert len(page.images) == 3 * text.count("<figure>")
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.images)
    assert not {"script", "link", "iframe"} & set(page.tags) and "http" not in re.sub('base64,[^"]*', "", text)
    assert "the <b>thing</b> & number" in page.text  # escaped
    for title in ("truth", "found", "heatmap and keypoints"):  # above every picture
        assert page.text.count(title) == text.count("<figure>")
    for subset, row in result.figures.items():
        assert subset in page.text and all(str(figure) in page.text for figure in row.values())
    assert "Named although absent" in page.text


def test_what_the_gallery_shows():
    ious = [(k * 7 % 10) / 10 for k in range(10)]
    findings = [Finding(Overlap(round(10 * iou), 10, round(10 * iou)), 0.5, index=k) for k, iou in enumerate(ious)]
    findings[0] = replace(findings[0], overlap=Overlap(0, 10, 10))  # its IoU is 0
    quiet, alarm = Finding(Overlap(0, 0, 0), 0.9, index=10), Finding(Overlap(0, 5, 0), 0.8, index=11)
    shown = choose([*findings, quiet, alarm, replace(alarm, score=0.1, index=12)], 0.2, 2)
    order = sorted(range(10), key=lambda k: -ious[k])
    picked = {title: [finding.index for finding in some] for title, some in shown.items()}
    assert picked == {
        "Best": order[:2],
        "Median": order[4:6],
        "Worst": order[:-3:-1],
        "Named although absent": [11],
    }
    few = choose(findings[:3], 0.0, 2)
    assert [len(some) for some in few.values()] == [2, 1]
    assert len({finding.index for some in few.values() for finding in some}) == 3
    wrong = [Finding(Overlap(0, 5, 5), score, index=20 + k) for k, score in enumerate((0.3, 0.9, 0.6))]
    assert [finding.index for finding in choose([*findings, *wrong], 0.0, 2)["Worst"]] == [21, 22]  # surest first
