"""SIGTERM on any rank -> the step is finished, all ranks save a checkpoint together, and the process exits with 75.

transformers' `enable_jit_checkpoint` does not do this: each rank acts on its own signal, at whatever step it is then,
so ranks save separately and hang; it saves between a gradient and its update; its marker of an unfinished checkpoint
would be taken for one of the checkpoint's files; and the run then ends as if it were done, with exit code 0.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.logging import get_logger
from transformers import TrainerCallback

from ..ranks import Ranks


logger = get_logger(__name__)


class Interruption(TrainerCallback):
    """Requests a checkpoint and the end of training once any rank has received SIGTERM."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._asked = False
        self.leaving = False  # on all ranks, after the current step
        self.evaluation_is_due = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGTERM requests a checkpoint. A handler that the user has set stays in place."""
        self._asked = self.leaving = self.evaluation_is_due = False
        if threading.current_thread() is not threading.main_thread():
            yield  # in Python only the main thread can handle signals
            return
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            logger.warning(
                "SIGTERM already has a handler, which is kept: SIGTERM will not save a checkpoint by itself."
            )
            yield
            return
        signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            # A launcher sends SIGTERM again to ranks that exit a little later than the first.
            signal.signal(signal.SIGTERM, signal.SIG_IGN if self.leaving else signal.SIG_DFL)

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True

    def on_step_end(self, args, state, control, **kwargs):
        self.leaving = bool(self._ranks.max(int(self._asked)))
        if self.leaving:
            control.should_save = control.should_training_stop = True
            # There may be only seconds left. The resumed run does the evaluation.
            self.evaluation_is_due, control.should_evaluate = control.should_evaluate, False
