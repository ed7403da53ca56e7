"""A chat whose answers point; a text of your own that does; and the model's own view of what a request wants.

    python examples/grounded_chat.py

With LLaVA-1.5 or Qwen2.5-VL, loaded as in segment.py's docstring, ask in plain English ("What is on the table?"); what
`generate` takes goes through: `adapter.chat(image, messages, max_new_tokens=200, do_sample=True, temperature=0.7)`.
"""

import re

from lens_adapter import builtin
from lens_adapter.data.scenes import sample_scene

image = sample_scene(537, "test").draw(480)
adapter = builtin.load_head("lite").attach(*builtin.load_base())

# The base answers, as it would without an adapter; names in the answer are found by a simple rule and segmented.
said = adapter.chat(image, "what is the leftmost object ?", max_new_tokens=24)
for phrase in said.phrases:
    print(f"{said.text!r} {phrase.span}: {int(phrase.mask.sum())} pixels, score {phrase.score:.2f}")
said.output.save("grounded.png")

# A text from elsewhere, and what to look for in it: names, regular expressions, or both.
text = "A heart lies below the triangle, and a ring to its left."
grounded = adapter.ground(image, text, phrases=["the triangle", re.compile("a (heart|ring)", re.IGNORECASE)])
for phrase in grounded.phrases:
    print(f"{phrase.text:<14} at {phrase.span}: score {phrase.score:.2f}")

# The frozen model is asked itself, and its "yes" and "no" are compared. This tiny one was never taught that (see
# docs/pipelines-and-chat.md); measure your own.
for request in ("segment the triangle", "how many circles ?"):
    route = adapter.route(request, image)
    print(f"{request!r}: {route.decision} (probability of a mask {route.probability:.2f})")
