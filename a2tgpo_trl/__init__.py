"""Turn-level credit from information gain for tool-using language models, as a trainer in the style of TRL.

    args = A2TGPOConfig("outputs/mine")
    A2TGPOTrainer("Qwen/Qwen3-0.6B", exact_match, args, dataset, tools=[search]).train()

`dataset` has the columns "prompt" and "answer". On the command line, `a2tgpo help` lists what there is to read.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .import_lines import drop_import_lines


if TYPE_CHECKING:
    from .config import A2TGPOConfig
    from .rollout.settings import ToolConfig
    from .rollout.trainer import ToolTrainer
    from .trainer import A2TGPOTrainer

__version__ = "0.1.0"
__all__ = ["A2TGPOConfig", "A2TGPOTrainer", "ToolConfig", "ToolTrainer"]

# Importing TRL takes seconds; the command line and the pure modules do without it.
LAZY = {
    "A2TGPOConfig": ".config",
    "A2TGPOTrainer": ".trainer",
    "ToolConfig": ".rollout.settings",
    "ToolTrainer": ".rollout.trainer",
}

drop_import_lines()  # the first thing that each command and script imports of this package


def __getattr__(name: str):
    if name in LAZY:
        return getattr(import_module(LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
