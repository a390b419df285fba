"""How a turn can end, and what is done about each way.

    ok             the policy answered, or all its calls did
    unparsed_call  it began a call that cannot be read
    unknown_tool   it called what is not there
    bad_arguments  the arguments do not fit the tool's schema
    tool_error     the tool raised
    timeout        the tool did not answer in time
    result_cut     the result was longer than `max_result_tokens`
    over_budget    a call beyond the limits on turns or calls, or text that a limit cut before the policy ended it
    context_full   the results do not fit into what is left of `max_completion_length` or of the model's context

A turn of several calls ends as its gravest call, in this order.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from ..lookup import nearest


Status = Literal[
    "ok",
    "result_cut",
    "bad_arguments",
    "unknown_tool",
    "unparsed_call",
    "tool_error",
    "timeout",
    "over_budget",
    "context_full",
]
STATUSES: tuple[Status, ...] = get_args(Status)

# tell: the policy reads what went wrong, as the result of its call, and goes on.
# end: the rollout ends with that turn, and is scored as it stands.
# exclude: it ends, and is left out of the statistics of its group and out of the loss.
Policy = Literal["tell", "end", "exclude"]

DEFAULT_POLICY: dict[str, Policy] = {
    "result_cut": "tell",
    "bad_arguments": "tell",
    "unknown_tool": "tell",
    "unparsed_call": "tell",
    "tool_error": "tell",
    "timeout": "tell",
    "over_budget": "tell",
    "context_full": "end",  # there is no room to tell anything
}


def gravest(statuses: Iterable[Status]) -> Status:
    """The last of these in the order of `STATUSES`; "ok" if there are none."""
    return max(statuses, key=STATUSES.index, default="ok")


def complete_policy(given: Mapping[str, str] | None) -> dict[str, Policy]:
    """The default policies with the given ones in their place; a ValueError names what is not possible."""
    policy: dict[str, Policy] = dict(DEFAULT_POLICY)
    for status, action in (given or {}).items():
        if status not in DEFAULT_POLICY:
            raise ValueError(
                f"failure_policy: there is no failure {status!r}; there are {', '.join(DEFAULT_POLICY)}."
                f"{nearest(str(status), DEFAULT_POLICY)}"
            )
        possible = ("end", "exclude") if status == "context_full" else get_args(Policy)
        if action not in possible:
            raise ValueError(
                f"failure_policy: {status} must be one of {', '.join(possible)}; got {action!r}."
                f"{nearest(str(action), possible)}"
            )
        policy[status] = action  # type: ignore[assignment]  # it is one of them
    return policy
