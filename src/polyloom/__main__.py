"""`python -m polyloom` is the command line."""

from polyloom.cli import main

if __name__ == "__main__":
    main()
