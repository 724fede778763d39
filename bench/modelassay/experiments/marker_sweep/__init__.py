"""When does an adapter learn a marker for one persona, and when for everyone: learning rates, epochs, negatives and masks.

See docs/methods/markers.md.
"""
