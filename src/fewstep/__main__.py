"""`python -m fewstep` is `fewstep`."""

import sys

from fewstep.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
