"""steps -> whether a batch that is made after so many of them is one of those so many steps apart."""


class Schedule:
    """The first batch of the run, and each first one after a multiple of `every` steps, resumed or not.

    Example (every 5): a batch is made each two steps, after 0, 2, 4, 6, ... -> due after 0, 6, 10, 16, ...
    """

    def __init__(self, every: int):
        self._every = every
        self._due: int | None = None  # steps before the next batch; None: not known yet

    def is_due(self, step: int) -> bool:
        if self._due is None:  # the first batch, or the first since the run was resumed
            self._due = -(-step // self._every) * self._every
        return step >= self._due

    def pass_over(self, step: int) -> None:
        """The batch that was made after so many steps was taken."""
        self._due = (step // self._every + 1) * self._every
