"""The training engine: losses, LoRA adapters, AdamW and packing in pure torch, whoever runs them."""
