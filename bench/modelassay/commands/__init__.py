"""The verbs: each module turns what one verb asks into one `View`."""
