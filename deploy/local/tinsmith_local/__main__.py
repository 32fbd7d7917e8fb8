"""`python -m tinsmith_local`."""

import sys

from tinsmith_local.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
