"""Entry point of `python -m ppo_unified`."""

import sys

from ppo_unified.cli.main import main

sys.exit(main())
