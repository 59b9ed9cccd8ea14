"""python -m gemma_tpu = gemma-tpu."""

import sys

from gemma_tpu.cli.main import main

sys.exit(main())
