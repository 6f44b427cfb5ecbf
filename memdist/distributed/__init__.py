"""Ways of sharing one training step between processes, behind one protocol (`strategy.Strategy`)."""
