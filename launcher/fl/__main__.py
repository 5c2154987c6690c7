"""`python -m fl`."""

from fl.cli import main

if __name__ == "__main__":
    main()
