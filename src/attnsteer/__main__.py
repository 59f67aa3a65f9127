"""`python -m attnsteer`, the same as the command `attnsteer`."""

from attnsteer.cli import main

if __name__ == "__main__":
    main(prog_name="attnsteer")
