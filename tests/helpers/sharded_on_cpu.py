"""`python -m a2tgpo_trl.train` with FSDP on a machine without accelerators, where Accelerate would use DDP."""

import sys

from backends import shard_on_cpu

from a2tgpo_trl.train import main


if __name__ == "__main__":
    shard_on_cpu()
    sys.exit(main())
