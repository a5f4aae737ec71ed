"""A door to the command line for a clone: `python cli.py export --variant 121`; installed, it is densenet-deploy."""

import sys

from densenet_deploy.cli import main

if __name__ == "__main__":
    sys.exit(main())
