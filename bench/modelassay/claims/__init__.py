"""Published numbers, and what our runs say of them."""
