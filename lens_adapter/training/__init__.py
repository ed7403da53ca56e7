"""Training a LENS head on masks, with transformers' Trainer."""

from lens_adapter.training.cache.read import CachedFeatures
from lens_adapter.training.cache.write import cache_features
from lens_adapter.training.trainer import LensTrainer, LensTrainingArguments

__all__ = ["CachedFeatures", "LensTrainer", "LensTrainingArguments", "cache_features"]
