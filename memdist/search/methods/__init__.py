"""Ways through a space: each is asked what to train next, and told what came of it."""
