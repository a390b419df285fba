"""Turn-level credit from information gain for tool-using language models, as a trainer in the style of TRL."""

from typing import TYPE_CHECKING

from .import_lines import drop_import_lines


if TYPE_CHECKING:
    from .config import A2TGPOConfig
    from .trainer import A2TGPOTrainer

__version__ = "0.1.0"
__all__ = ["A2TGPOConfig", "A2TGPOTrainer"]

drop_import_lines()  # the first thing that each command and script imports of this package


def __getattr__(name: str):
    # Importing TRL takes seconds; the command line and the pure modules do without it.
    if name == "A2TGPOConfig":
        from .config import A2TGPOConfig

        return A2TGPOConfig
    if name == "A2TGPOTrainer":
        from .trainer import A2TGPOTrainer

        return A2TGPOTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
