"""Generation: prompts in, completions out, as plain data; one protocol, several engines."""
