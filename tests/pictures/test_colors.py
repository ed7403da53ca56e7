from __future__ import annotations

from lens_adapter.pictures.colors import PALETTE, color_of, ink_on


def test_the_colors_of_many_prompts_are_told_apart():
    colors = [color_of(index) for index in range(3 * len(PALETTE))]
    assert len(set(colors)) == len(colors) and tuple(colors[: len(PALETTE)]) == PALETTE
    assert color_of(len(colors)) == color_of(0)


def test_text_reads_on_every_color():
    assert ink_on((255, 255, 255)) != ink_on((0, 0, 0))
    assert ink_on((240, 228, 66)) == ink_on((255, 255, 255))
