"""Training: the loop, what it starts from, what it measures and what it leaves in the run folder."""
