"""The pictures a visitor can start from: test scenes of the built-in world, with prompts that are true of them."""

from lens_adapter.builtin.demo import PICTURE_SIZE, SHOWN, Shown

EXAMPLES = (
    *SHOWN,
    Shown(
        index=29512,
        prompts={"something you can drink from": (2,), "the book left of the green book": (0,), "the red book": ()},
        question="can you drink from the cup ?",
    ),
    Shown(
        index=7206,
        prompts={
            "what you would use to cut paper": (4,),
            "the animal that gives wool": (5,),
            "the blue car": (),
        },
        question="does the sheep give wool ?",
    ),
    Shown(
        index=13898,
        prompts={"the red car": (1,), "what you can write with": (0,), "something you can wear": (2,)},
        question="what color is the shirt ?",
    ),
)

__all__ = ["EXAMPLES", "PICTURE_SIZE", "Shown"]
