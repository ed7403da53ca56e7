from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lens_adapter.pictures.drawing import Canvas, framed, scaled, stencil
from tests.tiny.outputs import PAPER, pixels


@pytest.mark.parametrize(("size", "expected"), [((200, 100), (80, 40)), ((40, 20), (80, 40)), ((100, 400), (25, 100))])
def test_a_picture_is_scaled_to_a_width_unless_it_is_tall(size, expected):
    assert scaled(Image.new("RGB", size), 80).size == expected


def test_a_frame_cuts_the_corners_and_leaves_the_middle():
    framed_picture = pixels(framed(Image.new("RGB", (60, 40), PAPER)))
    assert framed_picture.shape == (40, 60, 3)
    assert (framed_picture[0, 0] == 255).all() and (framed_picture[15:25, 15:45] == PAPER).all()


def test_a_stencil_lets_through_what_is_inside():
    alpha = np.asarray(stencil(np.array([[True] * 4 + [False] * 4]), (80, 20), opacity=0.4))
    assert alpha.shape == (20, 80) and (alpha[:, :20] == 102).all() and (alpha[:, 60:] == 0).all()


def test_shapes_lie_where_they_were_put():
    canvas = Canvas(Image.new("RGB", (80, 60), PAPER), unit=1)
    canvas.ring(20, 15, (10, 20, 30))
    canvas.chip((40, 40, 70, 50), (200, 10, 10))
    drawn = pixels(canvas.drawn())
    assert (drawn[15, 20] == (10, 20, 30)).all() and (drawn[45, 55] == (200, 10, 10)).all()
    assert (drawn[30:38] == PAPER).all() and (pixels(canvas.picture) == PAPER).all()
