"""``python -m sige.runs``: see ``sige.runs.app``."""

from sige.runs.app import main

if __name__ == "__main__":
    main()
