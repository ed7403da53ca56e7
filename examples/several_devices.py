"""Train and evaluate with several processes, one per device: on one machine or on several.

    python examples/several_devices.py                                                     # one process
    torchrun --nproc_per_node 8 examples/several_devices.py                                # 8 GPUs (or CPU processes)
    accelerate launch --num_processes 8 examples/several_devices.py                        # the same

Two machines with 8 GPUs each: the same on both, with rank 0 on the first (10.0.0.1) and 1 on the second:

    torchrun --nnodes 2 --node_rank 0 --nproc_per_node 8 --master_addr 10.0.0.1 examples/several_devices.py
    accelerate launch --num_machines 2 --machine_rank 0 --num_processes 16 --main_process_ip 10.0.0.1 \\
        --main_process_port 29500 examples/several_devices.py

The commands need no script: `accelerate launch --num_processes 8 -m lens_adapter train CONFIG.yaml`, or `evaluate`.
With LLaVA-1.5 or Qwen2.5-VL every process loads its own base: `from_pretrained(name, dtype="auto").to(args.device)`.
One that is too large for a device is sharded or spread, see docs/train.md.
"""

import torch

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.exam import make_exam
from lens_adapter.data.examples import Example
from lens_adapter.evaluation import evaluate
from lens_adapter.training import LensTrainer, LensTrainingArguments

cpu = not torch.cuda.is_available()
args = LensTrainingArguments(  # knows from the launcher which process this is, and on which device
    "my-head", max_steps=2, per_device_train_batch_size=2, learning_rate=1e-4, use_cpu=cpu, save_strategy="no"
)
examples = [
    Example(exam.picture, case.expression.text, case.truth, image_id=str(exam.seed))
    for exam in (make_exam(index, "validation") for index in range(2))
    for case in exam.cases
]
model, processor = builtin.load_base()
sam = {**builtin.load_head("lite").config.sam, "weights": str(builtin.SAM)}  # for your model: sam="vit_b"
adapter = LensAdapter.from_model(model.to(args.device), processor, fusion="lite", sam=sam)

trainer = LensTrainer(adapter, args, train_dataset=examples)
trainer.train()  # gradients are averaged: each step learns from batch size x processes
trainer.save_model()  # written once

result = evaluate(adapter, examples)  # each process takes a share, all get the whole result
if trainer.is_world_process_zero():
    print(f"{args.world_size} processes, {result.prompts} prompts, gIoU {result.figures['all']['giou'].value:.3f}")
