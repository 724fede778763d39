"""Text that experiments train and test on."""
