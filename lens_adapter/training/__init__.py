"""Training a LENS head on masks, with transformers' Trainer."""

from lens_adapter.training.trainer import LensTrainer, LensTrainingArguments

__all__ = ["LensTrainer", "LensTrainingArguments"]
