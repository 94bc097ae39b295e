"""``python -m losskit_cli.tracking DESCRIPTOR``: the process that writers are forked from (see :mod:`losskit_cli.tracking.server`)."""

import os
import sys

from losskit_cli.tracking.server import main

if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)
