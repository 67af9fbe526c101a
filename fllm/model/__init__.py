"""Base models, checkpoints, adapters and pre-training."""
