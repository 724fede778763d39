"""How a model's fingerprint moves while it is fine-tuned, with controls, and whether its weights moved at all."""
