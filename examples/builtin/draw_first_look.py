"""Draw the picture that the README and the documentation begin with: the first scene of `lens-adapter demo`.

    python examples/builtin/draw_first_look.py docs/first-look.png

To be run again when the models or the demo's scenes change.
"""

import sys

from lens_adapter import builtin
from lens_adapter.builtin.demo import PICTURE_SIZE, SHOWN
from lens_adapter.pictures.contact_sheet import contact_sheet

shown = SHOWN[0]
picture = shown.scene().draw(PICTURE_SIZE)
model, processor = builtin.load_base()
with builtin.load_head().attach(model, processor) as adapter:
    output = adapter.segment(picture, list(shown.prompts))
    (answer,) = builtin.ask(model, processor, [picture], [shown.question])
panel = output.to_panel(question=shown.question.replace(" ?", "?"), answer=answer)
sheet = contact_sheet(
    [panel],
    title="A frozen vision-language model points",
    subtitle="Shipped tiny LLaVA (never trained on masks) + LENS head “lite-sam2” + tiny SAM 2",
)
sheet.save(sys.argv[1])
print(f"Wrote {sys.argv[1]}")
