"""Training a head from cached features against training it live: seconds, and bytes on disk.

    python -m benchmarks.cached_features                                     # the models that ship with the package
    python -m benchmarks.cached_features --base llava-1.5-7b --device cuda   # its dimensions, random weights

The same trainer, data and order, an epoch live and one cached by turns. With the models that ship it is seconds of an
epoch, medians of several: the process's own (CPU) seconds on one thread, which other work on the machine changes
little; those of the clock on the wall are in the JSON, too. With a base of `benchmarks.bases` it is seconds of a step
on the wall, medians of all but the first of an epoch. Bytes of 7B models follow from the shapes in their configs, by
formulae that a test holds against real folders. A run replaces in the JSON only what it measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForImageTextToText, TrainerCallback
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.trainer_callback import PrinterCallback

from benchmarks.bases import BASES
from benchmarks.harness import Stage
from benchmarks.suite.registry import PROMPTS, picture
from lens_adapter import LensAdapter, LensConfig, builtin
from lens_adapter.builtin.exam import PICTURE_SIZE
from lens_adapter.builtin.world import Speaker, sample_scene
from lens_adapter.data.examples import Example
from lens_adapter.sam.published import PUBLISHED
from lens_adapter.training import CachedFeatures, LensTrainer, LensTrainingArguments, cache_features
from lens_adapter.training.cache.read import FeatureBatch
from lens_adapter.training.losses import HEAT_SIDE, lens_losses

BUILTIN = "builtin"  # the models that ship with the package
HEADS = ("mirror", "lite")
KINDS = ("attribute", "spatial")  # prompts about each scene
DTYPES = ("exact", "float16")
GOAL = 10  # times faster
NOT_LEARNING = ("reading and collating", "copies to the device", "base", "SAM's image encoder")  # of a step
TEXT_TOKENS = 32  # of chat template, question and prompt: an assumption
PICTURE = (480, 640)  # (H, W) of what a 7B model is shown: an assumption
LLAVA = {"model_type": "llava"}  # the defaults of transformers are LLaVA-1.5-7B's
QWEN = {
    "model_type": "qwen2_5_vl",
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}


# -- bytes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sequence:
    """What a base makes of one example.

    Attributes:
        tokens: attended ones, image and text.
        image_tokens: those that look at the picture.
        rotary: numbers in the rotary tables of a token, cosines and sines.
        indices: whole numbers per token that layers are called with (`position_ids`).
    """

    tokens: int
    image_tokens: int
    rotary: int
    indices: int


def feature_bytes(config: LensConfig, sequence: Sequence, base_bytes: int, dtype: str) -> dict[str, int]:
    """Bytes of the features of an example, by what they are; "embedding" is of a picture, however many ask about it.

    Not counted: the texts and run lengths of an example (some hundred bytes), a mask of its own where the base's
    is not causal (tokens² / 8), and regions to ignore.

    Args:
        base_bytes: of a number in the base.
        dtype: of the cache, "exact" or "float16".
    """
    t, n = sequence.tokens, sequence.image_tokens
    own, single = (2, 2) if dtype == "float16" else (base_bytes, 4)
    grid = config.sam["image_size"] // config.sam["patch_size"]
    mirror = config.fusion == "mirror"
    return {
        "hidden": t * config.hidden_size * own,
        "attention": t * len(config.attention_layers) * config.num_attention_heads * single,
        "layer": t * (sequence.rotary * own + sequence.indices * 4) if mirror else 0,
        "layout": n * (4 + 4 * 4) + (2 + 2) * 4,  # positions, boxes; grid and size
        "targets": ((4 * grid) ** 2 + HEAT_SIDE**2) * single,
        "embedding": config.sam["out_channels"] * grid**2 * single,
    }


def measured_bytes(features: CachedFeatures, index: int) -> dict[str, int]:
    """The same of an example that is on disk."""
    row = features[index]
    names = {"hidden": "hidden", "attention": "attention", "positions": "layout", "boxes": "layout", "grid": "layout"}
    names |= {"size": "layout", "masks": "targets", "heat": "targets"}
    sizes = dict.fromkeys(("hidden", "attention", "layer", "layout", "targets"), 0)
    for name, tensor in row.tensors.items():
        if part := "layer" if name.startswith("layer.") else names.get(name):
            sizes[part] += tensor.nbytes
    return {**sizes, "embedding": row.embedding.nbytes}


def seven_billion(facts: dict[str, Any]) -> tuple[dict[str, LensConfig], Sequence]:
    """The configs of both heads for a 7B base, and what that makes of a picture of `PICTURE`; no weights are needed."""
    given = {key: value for key, value in facts.items() if key != "model_type"}
    base = AutoConfig.for_model(facts["model_type"], **given)
    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(base)
    configs = {fusion: LensConfig.from_model(model, fusion=fusion, sam="vit_h") for fusion in ("mirror", "lite")}
    vision, text = base.vision_config, base.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if base.model_type == "llava":
        image_tokens, indices = (vision.image_size // vision.patch_size) ** 2, 1
    else:
        cell = vision.patch_size * vision.spatial_merge_size
        height, width = smart_resize(*PICTURE, factor=cell)
        image_tokens, indices = (height // cell) * (width // cell), 0
    return configs, Sequence(image_tokens + TEXT_TOKENS, image_tokens, 2 * head_dim, indices)


# -- seconds ----------------------------------------------------------------------------------------------------------


def make_examples(count: int) -> list[Example]:
    """Prompts about scenes of the validation split, drawn beforehand: live training does not pay for reading files."""
    examples: list[Example] = []
    for number in range(count):
        scene = sample_scene(number, "validation")
        speaker, picture = Speaker(scene, np.random.default_rng(number)), scene.draw(PICTURE_SIZE)
        masks = scene.masks(PICTURE_SIZE)
        said = filter(None, (speaker.expression(kind) for kind in KINDS))
        examples += [Example(picture, one.text, masks[list(one.targets)].any(0)) for one in said]
        if len(examples) >= count:
            break
    return examples[:count]


class Clock(TrainerCallback):
    """Seconds of every epoch, from its first batch to the end of its last step, by two clocks: own and wall; and
    those of every step after an epoch's first, on the wall, from the end of the step before it to its own."""

    def __init__(self) -> None:
        self.seconds: list[tuple[float, float]] = []
        self.steps: list[list[float]] = []  # of each epoch

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.start = (time.process_time(), time.perf_counter())
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        wait()
        self.ends.append(time.perf_counter())

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append((time.process_time() - self.start[0], time.perf_counter() - self.start[1]))
        self.steps.append([after - before for before, after in pairwise(self.ends)])


def wait() -> None:
    """Until an accelerator, if there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def make_trainer(
    adapter: Any, data: Any, batch_size: int, folder: Path, *, device: str = "cpu", **arguments: Any
) -> tuple[LensTrainer, Clock]:
    """A trainer of one epoch, and the clock that times it; `arguments` of `LensTrainingArguments`."""
    args = LensTrainingArguments(
        str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        **arguments,
    )
    clock = Clock()
    trainer = LensTrainer(adapter, args, train_dataset=data, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    return trainer, clock


def time_parts(
    trainer: LensTrainer, data: Any, batch_size: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Milliseconds of a step by what it does, medians over one pass; each part by itself, nothing read ahead."""
    seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = clock()
        yield
        wait()
        seconds[name].append(clock() - start)

    adapter = trainer.adapter.train()
    mixed = trainer.accelerator.autocast
    optimizer = torch.optim.AdamW([p for p in adapter.parameters() if p.requires_grad], lr=1e-6)
    shuffled = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    for start in range(0, len(data) - batch_size + 1, batch_size):
        with timed("reading and collating"):
            batch = trainer.data_collator([data[index] for index in shuffled[start : start + batch_size]])["batch"]
        with timed("copies to the device"):
            if isinstance(batch, FeatureBatch):
                batch = batch.to(adapter.device)
            index, targets = batch.image_index.to(adapter.device), batch.targets.to(adapter.device)
        with timed("base"):
            reading = batch.read(adapter)
        with timed("SAM's image encoder"), mixed():
            embeddings = batch.encode_images(adapter)
        with timed("head and mask decoder, forward"), mixed():
            found = adapter(reading, embeddings, index)
            parts = lens_losses(found, targets, heat_needs_target=adapter.config.fusion == "mirror")
            loss = torch.stack(list(parts.values())).sum()
        with timed("head and mask decoder, backward"):
            loss.backward()
        with timed("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
    return {name: 1000 * median(values) for name, values in seconds.items()}


def compare(head: str, examples: list[Example], epochs: int, batch_size: int, folder: Path) -> dict[str, Any]:
    """One head of the package: epochs live and cached, parts of a step, bytes on disk."""
    live_adapter, adapter = (builtin.load_head(head).attach(*builtin.load_base()) for _ in range(2))
    start = time.process_time()
    features = cache_features(adapter, examples, folder / "exact", batch_size=batch_size)
    building = time.process_time() - start
    small = cache_features(adapter, examples, folder / "float16", dtype="float16", batch_size=batch_size)
    adapter.detach()
    pairs = {
        "live": (make_trainer(live_adapter, examples, batch_size, folder), examples),
        "cached": (make_trainer(adapter, features, batch_size, folder), features),
    }
    losses = {}
    for epoch in range(epochs + 1):
        for name, ((trainer, _), _) in pairs.items():
            trainer.train()
            if not epoch:
                losses[name] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    seconds, wall = (  # the first epoch warms up
        {name: median(epoch[kind] for epoch in clock.seconds[1:]) for name, ((_, clock), _) in pairs.items()}
        for kind in (0, 1)
    )
    parts = {name: time_parts(trainer, data, batch_size) for name, ((trainer, _), data) in pairs.items()}
    costs = {name: sum(part[what] for what in NOT_LEARNING) for name, part in parts.items()}
    live_step = sum(parts["live"].values())
    return {
        "epoch_seconds": {name: round(value, 4) for name, value in seconds.items()},
        "epoch_seconds_on_the_wall": {name: round(value, 4) for name, value in wall.items()},
        "epoch_seconds_of_each": {
            name: [round(own, 4) for own, _ in clock.seconds] for name, ((_, clock), _) in pairs.items()
        },
        "times_faster": round(seconds["live"] / seconds["cached"], 2),
        "times_faster_on_the_wall": round(wall["live"] / wall["cached"], 2),
        f"goal_of_{GOAL}_met": seconds["live"] / seconds["cached"] >= GOAL,
        "times_faster_if_reading_took_no_time": round(live_step / (live_step - costs["live"]), 2),
        "times_faster_without_the_part_that_learns": round(costs["live"] / costs["cached"], 1),
        "step_milliseconds": {name: {k: round(v, 2) for k, v in part.items()} for name, part in parts.items()},
        "making_the_features_in_live_epochs": round(building / seconds["live"], 2),
        "largest_difference_of_losses": max(abs(a - b) for a, b in zip(losses["live"], losses["cached"], strict=True)),
        "disk_bytes_per_sample": {"exact": _on_disk(features, "samples"), "float16": _on_disk(small, "samples")},
        "disk_bytes_per_picture": {"exact": _on_disk(features, "images"), "float16": _on_disk(small, "images")},
        "samples": len(features),
        "pictures": features.store.index["counts"]["images"],
    }


def real_examples(count: int) -> list[Example]:
    """Two prompts about each of a few pictures as large as `PICTURE`, in memory. Neither costs nor sizes depend on what
    they show."""
    rows, columns = np.ogrid[: PICTURE[0], : PICTURE[1]]
    examples = []
    for k in range(-(-count // 2)):
        image = picture(k)
        for side in (1, 3):
            disc = (rows - PICTURE[0] // 2) ** 2 + (columns - side * PICTURE[1] // 4) ** 2 < (60 + k) ** 2
            examples.append(Example(image, PROMPTS[(2 * k + side // 2) % len(PROMPTS)], disc))
    return examples[:count]


def compare_shapes(stage: Stage, head: str, steps: int, batch_size: int, workers: int, folder: Path) -> dict[str, Any]:
    """One head on a base with random weights: steps live and cached, parts of a step, bytes on disk.

    Under bfloat16 the head learns in mixed precision, as it would on an accelerator.
    """
    examples, (model, processor) = real_examples(steps * batch_size), stage.pair
    live = LensAdapter.from_model(
        model, processor, load_sam=False, fusion=head, sam={**_sam(stage), "include_image_encoder": True}
    )
    cached = copy.deepcopy(live)
    began = time.perf_counter()
    features = cache_features(live, examples, folder, batch_size=batch_size)
    wait()
    building = time.perf_counter() - began
    cached.decoder.image_encoder = None
    options = {"device": stage.device, "bf16": stage.dtype == torch.bfloat16, "dataloader_num_workers": workers}
    pairs = {
        "live": (make_trainer(live, examples, batch_size, folder, **options), examples),
        "cached": (make_trainer(cached, features, batch_size, folder, **options), features),
    }
    losses = {}
    for epoch in range(2):
        for name, ((trainer, _), _) in pairs.items():
            trainer.train()
            losses[name, epoch] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    seconds = {name: median(clock.steps[-1]) for name, ((_, clock), _) in pairs.items()}  # the first epoch warms up
    clock = time.process_time if stage.device == "cpu" else time.perf_counter
    parts = {name: time_parts(trainer, data, batch_size, clock) for name, ((trainer, _), data) in pairs.items()}
    costs = {name: sum(part[what] for what in NOT_LEARNING) for name, part in parts.items()}
    return {
        "record": {**stage.record(), "adapter_dtype": "float32" + ", mixed with bfloat16" * options["bf16"]},
        "batch_size": batch_size,
        "loader_workers": workers,
        "steps": len(pairs["live"][0][1].steps[-1]),
        "step_milliseconds": {name: round(1000 * value, 2) for name, value in seconds.items()},
        "times_faster": round(seconds["live"] / seconds["cached"], 2),
        f"goal_of_{GOAL}_met": seconds["live"] / seconds["cached"] >= GOAL,
        "part_milliseconds": {name: {k: round(v, 2) for k, v in part.items()} for name, part in parts.items()},
        "times_faster_without_the_part_that_learns": round(costs["live"] / costs["cached"], 1),
        "making_the_features_in_live_epochs": round(building / (seconds["live"] * steps), 2),
        "first_losses": {name: losses[name, 0][0] for name in pairs},
        "disk_bytes_per_sample": _on_disk(features, "samples"),
        "disk_bytes_per_picture": _on_disk(features, "images"),
        "samples": len(features),
        "pictures": features.store.index["counts"]["images"],
    }


def _sam(stage: Stage) -> dict[str, Any]:
    return BASES[stage.base].sam if stage.sam is None else {"variant": stage.sam}


def _on_disk(features: CachedFeatures, kind: str) -> int:
    shards = features.store.index["shards"]
    return round(
        sum(shards[name]["bytes"] for name in features.store.names(kind)) / features.store.index["counts"][kind]
    )


# -- report -----------------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """Two Markdown tables."""
    lines = ["| built-in model | an epoch live | cached | times faster | a sample, exact / float16 | a picture |"]
    lines += ["|---" * 6 + "|"]
    for head, found in results["builtin"].items():
        seconds, sample, picture = (
            found[key] for key in ("epoch_seconds", "disk_bytes_per_sample", "disk_bytes_per_picture")
        )
        lines.append(
            f"| {head} | {seconds['live']:.2f} s | {seconds['cached']:.2f} s | {found['times_faster']:.1f} | "
            f"{_size(sample['exact'])} / {_size(sample['float16'])} | "
            f"{_size(picture['exact'])} / {_size(picture['float16'])} |"
        )
    lines += ["", "| base in bfloat16, SAM vit_h | tokens | a sample, exact | float16 | a picture, exact | float16 |"]
    lines += ["|---" * 6 + "|"]
    for name, found in results["seven_billion"].items():
        cells = (_size(found[kind][dtype]) for kind in ("bytes_per_sample", "bytes_per_picture") for dtype in DTYPES)
        lines.append(f"| {name} | {found['tokens']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _size(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def seven_billion_bytes() -> dict[str, Any]:
    found = {}
    for name, facts in (("LLaVA-1.5-7B", LLAVA), ("Qwen2.5-VL-7B", QWEN)):
        configs, sequence = seven_billion(facts)
        for fusion, config in configs.items():
            sizes = {dtype: feature_bytes(config, sequence, 2, dtype) for dtype in DTYPES}
            found[f"{name}, {fusion}"] = {
                "tokens": sequence.tokens,
                "bytes": sizes,
                "bytes_per_sample": {
                    d: sum(v for k, v in size.items() if k != "embedding") for d, size in sizes.items()
                },
                "bytes_per_picture": {d: size["embedding"] for d, size in sizes.items()},
            }
    return found


def shapes_table(found: dict[str, Any]) -> str:
    """A Markdown table of what `compare_shapes` found, by base."""
    lines = ["| base | head | a step live | cached | times faster | of that head and decoder | a sample | a picture |"]
    lines += ["|---" * 8 + "|"]
    for where, heads in found.items():
        for head, one in heads.items():
            step, parts = one["step_milliseconds"], one["part_milliseconds"]["cached"]
            share = 1 - sum(parts[what] for what in NOT_LEARNING) / sum(parts.values())
            lines.append(
                f"| {where} | {head} | {step['live']:.0f} ms | {step['cached']:.0f} ms | {one['times_faster']:.1f} | "
                f"{share:.0%} | {_size(one['disk_bytes_per_sample'])} | {_size(one['disk_bytes_per_picture'])} |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cached_features", description=__doc__.splitlines()[0])
    parser.add_argument("--base", choices=[BUILTIN, *BASES], default=BUILTIN, help="whose dimensions; random weights")
    parser.add_argument("--heads", choices=HEADS, nargs="+", default=list(HEADS))
    parser.add_argument("--examples", type=int, default=48, help=f"of {BUILTIN}")
    parser.add_argument("--epochs", type=int, default=4, help=f"of each kind, beside one to warm up; of {BUILTIN}")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help=f"of a base that is not {BUILTIN}")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="likewise")
    parser.add_argument("--steps", type=int, default=6, help="in an epoch, likewise")
    parser.add_argument("--layers", type=int, help="of the decoder, likewise; default: as many as its name stands for")
    parser.add_argument("--sam", choices=list(PUBLISHED), help="likewise; default: the one beside the base")
    parser.add_argument("--workers", type=int, default=0, help="processes that read examples ahead, likewise")
    parser.add_argument("--json", type=Path, default=Path("results/cached_features.json"))
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    torch.set_num_threads(args.threads)
    results = json.loads(args.json.read_text()) if args.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        if args.base == BUILTIN:
            examples = make_examples(args.examples)
            results["settings"] = {key: getattr(args, key) for key in ("examples", "epochs", "batch_size", "threads")}
            results["settings"] |= {"torch": torch.__version__, "transformers": transformers.__version__}
            results["builtin"] = {
                head: compare(head, examples, args.epochs, args.batch_size, Path(folder, head)) for head in args.heads
            }
        else:
            dtype = getattr(torch, args.dtype)
            stage = Stage(args.device, args.base, args.steps, layers=args.layers, dtype=dtype, sam=args.sam)
            where = f"{args.base}, {args.device}" + (f", {args.workers} workers" if args.workers else "")
            where += f", {args.layers} layers" if args.layers else ""
            found = results.setdefault("shapes", {}).setdefault(where, {})
            for head in args.heads:
                made = Path(folder, head)
                found[head] = compare_shapes(stage, head, args.steps, args.batch_size, args.workers, made)
    results["assumptions"] = {"picture": PICTURE, "text_tokens": TEXT_TOKENS, "base_dtype": "bfloat16"}
    results["seven_billion"] = seven_billion_bytes()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results) if args.base == BUILTIN else shapes_table(results["shapes"]))
    print(f"Wrote {args.json}")


if __name__ == "__main__":
    main()
