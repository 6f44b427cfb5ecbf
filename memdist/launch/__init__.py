"""Several processes for one command: who a process is among them, how they are started, signalled and ended."""
