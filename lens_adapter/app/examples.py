"""The pictures a visitor can start from: test scenes of the built-in world, with prompts that are true of them."""

from lens_adapter.demo import PICTURE_SIZE, SHOWN, Shown

EXAMPLES = (
    *SHOWN,
    Shown(
        index=569,
        prompts={"every diamond": (0, 1, 3), "the topmost diamond": (3,), "the green ring": ()},
        question="how many diamonds ?",
    ),
    Shown(
        index=572,
        prompts={"the rightmost cyan object": (5,), "the leftmost heart": (1,), "the plain purple diamond": (2,)},
        question="is there a green star ?",
    ),
    Shown(
        index=546,
        prompts={"the dotted red triangle": (2,), "every triangle": (1, 2, 3), "the blue ring": ()},
        question="what is the bottommost object ?",
    ),
)

__all__ = ["EXAMPLES", "PICTURE_SIZE", "Shown"]
