"""Training a LENS head on masks, with transformers' Trainer."""
