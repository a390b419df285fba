import os

import torch
from hypothesis import settings


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the hub, and nothing may wait for it
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

torch.set_num_threads(1)  # the models are so small that a second thread costs more than it brings

# The first example of a test pays for imports and kernels, so a time limit per example would fail on slow machines.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
