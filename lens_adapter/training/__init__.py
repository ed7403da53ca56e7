"""Training a LENS head on masks, with transformers' Trainer."""

from lens_adapter.training.cached import CachedFeatures
from lens_adapter.training.features import cache_features
from lens_adapter.training.trainer import LensTrainer, LensTrainingArguments

__all__ = ["CachedFeatures", "LensTrainer", "LensTrainingArguments", "cache_features"]
