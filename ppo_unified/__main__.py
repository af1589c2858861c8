"""`python -m ppo_unified`."""

import sys

from ppo_unified.cli import main

sys.exit(main())
