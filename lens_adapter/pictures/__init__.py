"""Pictures of what was found, drawn from plain values: images, masks, texts, numbers. Nothing here runs a model."""
