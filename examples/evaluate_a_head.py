"""Measure a head: figures with their intervals, a record of them, and a page of the best, median and worst.

    python examples/evaluate_a_head.py

With LLaVA-1.5 or Qwen2.5-VL, load model and head as in segment.py's docstring, and read a benchmark:

    source = DataSource.of({"path": "refer_seg", "format": "refer", "dataset": "refcoco+", "split": "testA"})
    result = evaluate(adapter, source.examples(), dataset=source.describe())      # lens_adapter.data.formats

From the command line, and on several devices by `accelerate launch -m` in the place of `python -m`:

    python -m lens_adapter evaluate --model llava-hf/llava-1.5-7b-hf --adapter org/lens-llava-1.5-7b \\
        --data refer_seg format=refer dataset=refcoco+ split=testA --json testA.json --gallery testA.html
"""

from lens_adapter import builtin
from lens_adapter.builtin.exam import make_exam
from lens_adapter.data.examples import Example
from lens_adapter.evaluation import evaluate
from lens_adapter.evaluation.gallery import save_gallery

# Picture, prompt, bool mask, and what to count it under: a sequence of your own does as well as a benchmark.
examples = [
    Example(exam.picture, case.expression.text, case.truth, subset=case.group, image_id=str(exam.seed))
    for exam in (make_exam(index, "validation") for index in range(4))
    for case in exam.cases
]

with builtin.load_head("lite").attach(*builtin.load_base()) as adapter:
    result = evaluate(adapter, examples, dataset={"name": "scenes", "split": "validation"})
    save_gallery("gallery.html", result, adapter, examples)

print(result.to_markdown())
result.save("validation.json")  # `lens-adapter push --results` puts it into a head's card

giou = result.figures["all"]["giou"]
worst = min(result.findings, key=lambda finding: finding.judged(result.score_threshold).iou)
print(f"gIoU {giou.value:.3f}, 95 % between {giou.interval[0]:.3f} and {giou.interval[1]:.3f}")
print(f"worst: {examples[worst.index].prompt!r}, IoU {worst.judged(result.score_threshold).iou:.2f}")
