"""Federated LoRA fine-tuning of a language model on emulated analog in-memory hardware."""
