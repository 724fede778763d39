"""Two environments measured tonight, in turns, in fresh processes: `rerun` measures, `decide` says what the pairs say."""
