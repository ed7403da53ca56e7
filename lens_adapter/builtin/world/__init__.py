"""The built-in world of everyday things: 64 pictures, scenes of them, and what is said about the scenes."""

from lens_adapter.builtin.world.expressions import EXPRESSION_KINDS, SUBSETS, WORDINGS, Expression
from lens_adapter.builtin.world.moving import moving_scene
from lens_adapter.builtin.world.questions import QUESTION_KINDS, REQUEST_KINDS, Question, Speaker
from lens_adapter.builtin.world.scenes import SPLITS, Scene, SceneObject, sample_scene
from lens_adapter.builtin.world.wording import words

__all__ = [
    "EXPRESSION_KINDS",
    "QUESTION_KINDS",
    "REQUEST_KINDS",
    "SPLITS",
    "SUBSETS",
    "WORDINGS",
    "Expression",
    "Question",
    "Scene",
    "SceneObject",
    "Speaker",
    "moving_scene",
    "sample_scene",
    "words",
]
