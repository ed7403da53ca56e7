"""Publish a head on the Hugging Face Hub, with what was measured in its card; and load it as anybody would.

    hf auth login                                    # or set HF_TOKEN
    python examples/publish.py YOUR-NAME/lens-tiny   # a private repository is made

For a head of LLaVA-1.5 or Qwen2.5-VL, `adapter` is what you trained (`LensAdapter.from_pretrained("my-head")`), and the
record is what `lens-adapter evaluate --json` wrote. From the command line:

    lens-adapter push my-head YOUR-NAME/lens-llava-1.5-7b --results testA.json --license apache-2.0 --private
"""

import sys

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.exam import make_exam
from lens_adapter.data.examples import Example
from lens_adapter.evaluation import evaluate

(repository,) = sys.argv[1:]
model, processor = builtin.load_base()

with builtin.load_head("lite").attach(model, processor) as adapter:
    exam = make_exam(0, "validation")
    examples = [Example(exam.picture, case.expression.text, case.truth) for case in exam.cases]
    record = evaluate(adapter, examples, dataset={"name": "one scene", "split": "validation"})

# One commit: config.json, model.safetensors, evaluation.json and a card that says what is recorded, no more.
commit = adapter.push_to_hub(repository, results=[record], license="apache-2.0", private=True)
print(f"Published at {commit.repo_url}")

with LensAdapter.from_pretrained(repository).attach(model, processor) as published:
    out = published.segment(exam.picture, exam.prompts[0])
print(f"As loaded from there: {out.prompts[0]!r}, score {out.scores[0]:.2f}")
