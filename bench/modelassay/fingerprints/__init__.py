"""What tells one model from another: measured on weights and on answers, compared, judged."""
