"""A chat whose answers point; a text of your own that does; and the model's own view of what a request wants.

    python examples/grounded_chat.py

With LLaVA-1.5 or Qwen2.5-VL, loaded as in segment.py's docstring, ask in plain English ("What is on the table?"); what
`generate` takes goes through: `adapter.chat(image, messages, max_new_tokens=200, do_sample=True, temperature=0.7)`.
"""

import re

from lens_adapter import builtin
from lens_adapter.builtin.demo import SHOWN

image = SHOWN[0].scene().draw(480)
first, second, *_ = SHOWN[0].prompts
adapter = builtin.load_head("lite").attach(*builtin.load_base())

# The base answers, as it would without an adapter; names in the answer are found by a simple rule and segmented.
said = adapter.chat(image, "what is the leftmost object ?", max_new_tokens=24)
for phrase in said.phrases:
    print(f"{said.text!r} {phrase.span}: {int(phrase.mask.sum())} pixels, score {phrase.score:.2f}")
said.output.save("grounded.png")

# A text from elsewhere, and what to look for in it: names, regular expressions, or both.
text = f"1. {first}\n2. {second}"
grounded = adapter.ground(image, text, phrases=[first, re.compile(r"(?<=2\. ).+")])
for phrase in grounded.phrases:
    print(f"{phrase.text:<40} at {phrase.span}: score {phrase.score:.2f}")

# The frozen model is asked itself, and its "yes" and "no" are compared; docs/pipelines-and-chat.md says how well that
# went. A base that wants to be asked in other words has them in its head's `config.routing_question`.
for request in (f"segment {first}", SHOWN[0].question):
    route = adapter.route(request, image)
    print(f"{request!r}: {route.decision} (probability of a mask {route.probability:.2f})")
