from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from base64 import b64decode
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from lens_adapter.pictures.notebook import HTML_WIDTH
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
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    shown = Image.open(BytesIO(b64decode(data)))
    assert shown.format == "PNG" and shown.size == (HTML_WIDTH, round(HTML_WIDTH / 3))
    small = output.plot().resize(shown.size)
    assert np.abs(pixels(shown.convert("RGB")) - pixels(small)).max() == 0
    output.image = None
    assert output._repr_html_().startswith("<table>")


def test_a_notebook_says_what_is_absent():
    output = painted_output(90, 30)
    output.masks[1] = False
    output.found[1] = False
    cells = re.findall(r"<td [^>]*>(.*?)</td>", output._repr_html_())
    assert [cells[3], cells[8]] == ["176 px (6.5%)", "absent"]


def test_a_notebook_shows_an_output_without_prompts():
    page = painted_output(90, 30, prompts=0)._repr_html_()
    assert ET.fromstring(page).find("img") is not None and "<td" not in page
