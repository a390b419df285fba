"""`python -m a2tgpo_trl.train`, with FSDP where there are no accelerators: Accelerate would train with DDP there."""

import sys

from backends import shard_on_cpu

from a2tgpo_trl.train import main


if __name__ == "__main__":
    shard_on_cpu()
    sys.exit(main())
