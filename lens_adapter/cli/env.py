"""`lens-adapter env`."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lens_adapter import __version__
from lens_adapter.cli.arguments import Commands, add_command, add_json_option
from lens_adapter.cli.outputs import require_files
from lens_adapter.cli.result import Result

_PACKAGES = (
    *("torch", "torchvision", "transformers", "tokenizers", "huggingface-hub", "safetensors", "accelerate", "peft"),
    *("segment-anything", "numpy", "pillow", "bitsandbytes", "torchao", "gradio", "supervision", "datasets"),
)
_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "env",
        run,
        help="versions and devices, for bug reports",
        description="""
        Prints versions of the packages that matter, the devices, and the switches that change what they do, for a bug
        report. Nothing private is among it: no paths, no names, no tokens.""",
        examples="""
        lens-adapter env
        lens-adapter env --json""",
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> Result:
    require_files({"--json": args.json})
    facts = _facts()
    lines = [f"{key} {', '.join(value) if isinstance(value, list) else value}" for key, value in facts.items()]
    return Result("\n".join(lines), facts)


def _facts() -> dict[str, Any]:
    # Without the rest of the package: this has to work where that does not.
    shipped = sorted(file.parent.name for file in Path(__file__).parents[1].glob("builtin/*/model.safetensors"))
    return {
        "lens_adapter": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _installed(name) for name in _PACKAGES},
        **_devices(),
        "cores": os.cpu_count(),
        "sam_families": _sam_families(),
        "shipped_models": shipped or "none",
        **{name: os.environ[name] for name in _SWITCHES if name in os.environ},
    }


def _devices() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:  # a library of CUDA that is missing, a file that is broken
        return {"accelerator": f"unknown, torch cannot be imported ({type(error).__name__})"}
    gpus = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    other = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "none"
    return {
        "cuda": torch.version.cuda or torch.version.hip or "not built in",
        "accelerator": [f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus] or other,
        "threads": torch.get_num_threads(),
    }


def _sam_families() -> list[str] | str:
    """Of transformers, that a mask decoder can be of; what the installed version lacks is said to be missing."""
    try:
        from lens_adapter.sam.families import FAMILIES, installed_families
    except (ImportError, OSError) as error:
        return f"unknown, transformers cannot be imported ({type(error).__name__})"
    found = installed_families().items()
    return [name if there else f"{name} (needs transformers {FAMILIES[name].since})" for name, there in found]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
