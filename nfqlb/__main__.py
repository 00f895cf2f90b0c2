"""`python -m nfqlb`: the command line."""

import sys

from nfqlb.operator.cli import main

if __name__ == "__main__":
    sys.exit(main())
