"""What lies on the disk: files that others may have put there."""
