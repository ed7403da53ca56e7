"""Train a LENS head on a folder of labelled images, and write it to another folder.

    python examples/train_on_a_folder.py                    # the built-in model, on a few scenes of its world
    python examples/train_on_a_folder.py llava-hf/llava-1.5-7b-hf my-labelled-images my-head

Qwen2.5-VL ("Qwen/Qwen2.5-VL-7B-Instruct") or any other model goes in the place of LLaVA-1.5. From the command line:

    lens-adapter train --model llava-hf/llava-1.5-7b-hf --data my-labelled-images -o my-head --head fusion=lite
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.exam import make_exam
from lens_adapter.data.examples import Examples
from lens_adapter.data.folder import read_folder
from lens_adapter.training import LensTrainer, LensTrainingArguments


def write_folder(folder: Path, scenes: int) -> None:
    """The layout that `read_folder` reads: images/, masks/, and a line of prompts.jsonl for each prompt."""
    lines = []
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for exam, name in ((make_exam(index, "train"), f"{index}.png") for index in range(scenes)):
        exam.picture.save(folder / "images" / name)
        for case, mask in ((case, f"{len(lines) + k}.png") for k, case in enumerate(exam.cases)):
            Image.fromarray(case.truth).save(folder / "masks" / mask)
            lines.append(json.dumps({"image": name, "mask": mask, "prompt": case.expression.text}))
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")


if len(sys.argv) == 4:
    name, folder, output = sys.argv[1:]
    settings = {"sam": "vit_b"}
else:
    name, folder, output = builtin.VLM, "labelled-scenes", "my-head"
    settings = {"sam": {**builtin.load_head("lite").config.sam, "weights": str(builtin.SAM)}}
    write_folder(Path(folder), scenes=3)

cpu = not torch.cuda.is_available()
args = LensTrainingArguments(output, num_train_epochs=1, per_device_train_batch_size=4, learning_rate=1e-4, use_cpu=cpu)
model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto").to(args.device)
set_seed(args.seed)  # before the head is made: its first weights are random
adapter = LensAdapter.from_model(model, AutoProcessor.from_pretrained(name), fusion="lite", **settings)

trainer = LensTrainer(adapter, args, train_dataset=Examples(read_folder(folder)))
trainer.train()
trainer.save_model()

sample = trainer.train_dataset[0]
adapter.segment(sample.image, sample.prompt).save(f"{output}/first-sample.png")
print(f"Trained for {trainer.state.global_step} steps on {len(trainer.train_dataset)} prompts, written to {output}")
