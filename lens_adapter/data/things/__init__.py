"""The built-in world of everyday things: 64 pictures, scenes of them, and what is said about the scenes."""

from lens_adapter.data.things.expressions import EXPRESSION_KINDS, SUBSETS, Expression
from lens_adapter.data.things.questions import QUESTION_KINDS, REQUEST_KINDS, Question, Speaker
from lens_adapter.data.things.scenes import SPLITS, Scene, SceneObject, sample_scene
from lens_adapter.data.things.wording import words

__all__ = [
    "EXPRESSION_KINDS",
    "QUESTION_KINDS",
    "REQUEST_KINDS",
    "SPLITS",
    "SUBSETS",
    "Expression",
    "Question",
    "Scene",
    "SceneObject",
    "Speaker",
    "sample_scene",
    "words",
]
