"""Training: one loop, loss masks as data, chat templates, and a state that resumes to the bit."""
