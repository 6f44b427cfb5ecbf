"""`python -m memdist`: the command, for launchers that start modules."""

from memdist.cli import main

if __name__ == "__main__":
    main()
