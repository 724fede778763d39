"""What one cell leaves: its event log, its tables, the moments it can go on from."""
