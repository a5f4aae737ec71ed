"""`python -m densenet_deploy`."""

import sys

from densenet_deploy.cli import main

sys.exit(main())
