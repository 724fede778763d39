"""An experiment that does what none should: the runner must survive it and say what happened."""
