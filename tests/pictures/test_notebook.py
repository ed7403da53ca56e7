from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from base64 import b64decode
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from lens_adapter.output import SHOWN_IN_A_NOTEBOOK, LensOutputs
from lens_adapter.pictures.colors import color_of
from lens_adapter.pictures.notebook import LEAST, MOST
from tests.tiny.outputs import painted_output, pixels


def test_a_notebook_shows_the_overlay_and_a_table():
    output = painted_output(900, 300)
    output.prompts = ["<script>alert('x')</script>", "a & b"]
    output.masks[1] = False
    output.keypoints[1] = torch.tensor([[1.0, 2.4], [3, 4], [5, 6], [7, 8], [9, 10]])
    page = output._repr_html_()
    cells = re.findall(r"<td [^>]*>(.*?)</td>", page)
    assert cells[1:5] == [
        "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;",
        "0.20",
        "16,875 px (6.2%)",
        "(450, 150)",
    ]
    assert cells[6:] == ["a &amp; b", "0.90", "empty", "(1, 2), (3, 4), (5, 6) and 2 more"]
    assert "<script" not in page and ET.fromstring(page).tag == "div"
    (shown,) = pictures_of(page)
    assert shown.format == "PNG" and shown.size == (MOST, round(MOST / 3))
    output.image = None
    assert output._repr_html_().startswith("<table>")


def pictures_of(page: str) -> list[Image.Image]:
    return [Image.open(BytesIO(b64decode(data))) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]


def test_a_notebook_draws_at_the_size_at_which_it_shows():
    large, small = (painted_output(*size, prompts=1) for size in ((2400, 1800), (32, 24)))
    for output, size in ((large, (MOST, MOST * 3 // 4)), (small, (LEAST, LEAST * 3 // 4))):
        (shown,) = pictures_of(output._repr_html_())
        assert shown.size == size
        # As the same thing drawn at that size from the start: no line is blurred, no label lost.
        same = pixels(painted_output(*size, prompts=1).plot())
        assert np.abs(pixels(shown.convert("RGB")) - same).mean() < 1


def test_the_colors_of_masks_labels_and_tables_are_the_same():
    output = painted_output(600, 400, prompts=3)
    page = output._repr_html_()
    (shown,) = pictures_of(page)
    for index in range(3):
        assert f"background: rgb{color_of(index)}" in page
        assert (pixels(shown.convert("RGB")) == color_of(index)).all(-1).sum() > 200


def test_a_notebook_shows_a_list_of_outputs():
    outputs = LensOutputs(painted_output(32, 24, prompts=1) for _ in range(SHOWN_IN_A_NOTEBOOK + 2))
    page = outputs._repr_html_()
    assert len(pictures_of(page)) == SHOWN_IN_A_NOTEBOOK and "and 2 more" in page
    assert ET.fromstring(page).tag == "div" and "more" not in LensOutputs(outputs[:2])._repr_html_()


def test_a_notebook_says_what_is_absent():
    output = painted_output(90, 30)
    output.masks[1] = False
    output.found[1] = False
    cells = re.findall(r"<td [^>]*>(.*?)</td>", output._repr_html_())
    assert [cells[3], cells[8]] == ["176 px (6.5%)", "absent"]


def test_a_notebook_shows_an_output_without_prompts():
    page = painted_output(90, 30, prompts=0)._repr_html_()
    assert ET.fromstring(page).find("img") is not None and "<td" not in page
