"""Results against results: of runs and of bare benchmark files, of one device or several; and the gate, which measures anew."""
