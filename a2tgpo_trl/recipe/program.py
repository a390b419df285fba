"""words of a launched program -> what it does with a recipe -> its exit code."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import RecipeError, RunStopped
from ..report.progress import quiet_libraries
from .recipe import Recipe, read_recipe


def run_recipe(action: Callable[[Recipe], Any], words: Sequence[str] | None) -> int:
    """Run an action on the recipe that these words describe, and return an exit code.

    0: done; 1: it had to stop; 2: it cannot be done so; 75: interrupted by SIGTERM, with a checkpoint to resume from;
    130: interrupted by the user.
    """
    quiet_libraries()
    try:
        action(read_recipe(sys.argv[1:] if words is None else words))
    except RecipeError as error:  # other errors keep their traceback
        print(f"a2tgpo: error: {error}", file=sys.stderr)
        return 2
    except RunStopped as stopped:  # all processes stop, for the same reason
        if os.environ.get("RANK", "0") == "0":
            print(f"a2tgpo: stopped: {stopped}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("a2tgpo: interrupted. Everything written so far is in the output folder.", file=sys.stderr)
        return 130
    return 0
