"""The shipped heads were saved by an earlier version; they find the same masks as they did then, bit for bit.

`shipped_masks.json` was written when the heads were: for each major version of transformers (whose image processors
differ) and each head, COCO run lengths of validation scenes, all prompts together and the first one alone. (The heads
before them were saved at commit 2452815; they found the same masks, bit for bit, until these took their place.)
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from lens_adapter import builtin
from lens_adapter.builtin.exam import make_exam

BEFORE = json.loads(Path(__file__).with_name("shipped_masks.json").read_text())


@pytest.mark.parametrize("name", builtin.HEADS)
def test_the_masks_are_those_of_the_version_that_saved_the_head(name):
    with builtin.load_head(name).attach(*builtin.load_base()) as adapter:
        for before in BEFORE[transformers.__version__.partition(".")[0]][name]:
            exam = make_exam(before["scene"], "validation")
            together = adapter.segment(exam.picture, exam.prompts, score_threshold=0).to_coco_rle()
            found = {prompt: mask["counts"] for prompt, mask in zip(exam.prompts, together, strict=True)}
            assert found == before["together"]
            (alone,) = adapter.segment(exam.picture, exam.prompts[0], score_threshold=0).to_coco_rle()
            assert alone["counts"] == before["alone"]
