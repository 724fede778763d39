"""Which training rows made a fine-tuned model say something, and how far such scores can be trusted."""
