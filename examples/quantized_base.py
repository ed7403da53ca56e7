"""A base whose weights are int8: heads read signals, and do not care how the base keeps its weights.

    python examples/quantized_base.py

This uses torchao, which runs anywhere. On a GPU, LLaVA-1.5 or Qwen2.5-VL in 4 bits by bitsandbytes:

    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="bfloat16")
    name = "llava-hf/llava-1.5-7b-hf"      # or "Qwen/Qwen2.5-VL-7B-Instruct"
    model = AutoModelForImageTextToText.from_pretrained(name, quantization_config=four_bits, device_map="auto")

A new mirror starts as a copy of the base's layers, so make it from the base as published; attaching a trained one, and
everything about lite heads, works with either.
"""

from torchao.quantization import Int8WeightOnlyConfig, quantize_

from lens_adapter import builtin
from lens_adapter.builtin.demo import SHOWN

image, prompts = SHOWN[0].scene().draw(480), list(SHOWN[0].prompts)
model, processor = builtin.load_base()
with builtin.load_head("lite").attach(model, processor) as adapter:
    exact = adapter.segment(image, prompts)

    quantize_(model.model.language_model, Int8WeightOnlyConfig())
    out = adapter.segment(image, prompts)

for k, prompt in enumerate(prompts):
    union = (out.masks[k] | exact.masks[k]).sum()
    overlap = (out.masks[k] & exact.masks[k]).sum() / union
    print(f"{prompt:<40} IoU of int8 and float masks {overlap:.3f}, scores {out.scores[k]:.2f}, {exact.scores[k]:.2f}")
