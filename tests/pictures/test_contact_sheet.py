from __future__ import annotations

import dataclasses

import pytest
import torch

from lens_adapter.errors import LensError
from lens_adapter.pictures.contact_sheet import contact_sheet
from tests.tiny.outputs import painted_output, pixels


@pytest.mark.parametrize("columns", [0, 1, 3, 4])
def test_contact_sheet_has_room_for_every_panel(columns):
    panel = painted_output(60, 40, columns).to_panel(question="How many?", answer="two")
    one = contact_sheet([panel], title="A page")
    two = contact_sheet([panel, panel], title="A page", subtitle="of two")
    assert one.mode == "RGB" and one.width == two.width
    assert two.height > one.height
    assert (pixels(one)[:, :30] == 255).all()  # the margin


def test_contact_sheet_shows_overlap_question_and_answer():
    output = painted_output(60, 40)
    sheets = [
        contact_sheet([panel], title="A page").tobytes()
        for panel in (
            output.to_panel(),
            output.to_panel(ious=[0.5, None]),
            output.to_panel(ious=[0.5, 0.7]),
            output.to_panel(question="How many?"),
            output.to_panel(question="How many?", answer="two"),
        )
    ]
    assert len(set(sheets)) == len(sheets)


def test_contact_sheet_refuses_what_it_cannot_draw():
    with pytest.raises(LensError, match="at least one panel"):
        contact_sheet([], title="A page")
    with pytest.raises(LensError, match=r"Panel\.ious: expected 2 numbers, got 1"):
        painted_output(60, 40).to_panel(ious=[0.5])
    with pytest.raises(LensError, match=r"LensOutput\.image.*None"):
        dataclasses.replace(painted_output(60, 40), image=None).to_panel()


def test_contact_sheet_tells_absent_from_empty():
    empty = painted_output(60, 40)
    empty.masks[1] = False
    absent = dataclasses.replace(empty, found=torch.tensor([True, False]))
    first, second = (pixels(contact_sheet([each.to_panel()], title="A page")) for each in (empty, absent))
    rows, _ = (first != second).any(-1).nonzero()
    assert 0 < rows.max() - rows.min() < 20  # one line of text
