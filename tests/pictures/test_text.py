from __future__ import annotations

from lens_adapter.pictures import text
from lens_adapter.pictures.text import font, shortened, wrap


def test_letters_that_the_usual_font_lacks_come_from_another():
    usual = font(16).getname()
    assert font(16, text="the café at 北緯").getname() == usual or font(16, text="北").getmask("北").getbbox()
    stranger = "\u2a5e"  # of matplotlib's own fonts, STIX has it
    assert not text._has(font(16).path, stranger)
    other = font(16, text=f"a {stranger}")
    assert other.getname() != usual and text._has(other.path, stranger) and text._has(other.path, "a")
    assert font(16, text="\U000f0123 and\na line").getname() == usual  # nobody has this one


def test_text_is_cut_and_wrapped_to_its_width():
    face = font(16)
    long = "the small green triangle to the left of the large yellow square"
    assert shortened("short", face, 200) == "short" and shortened("two\nlines", face, 200) == "two lines"
    assert shortened(long, face, 120).endswith("…") and face.getlength(shortened(long, face, 120)) <= 120
    assert shortened(long, face, 1) == ""
    lines = wrap(long, face, 200, 2)
    assert len(lines) == 2 and lines[1].endswith("…") and all(face.getlength(line) <= 200 for line in lines)
    assert " ".join(wrap(long, face, 200, 9)) == long
    assert wrap("", face, 200, 2) == []
