"""The spectrum of one model's loss on one text: where its ends are, how wide its bulk, and what that took."""
