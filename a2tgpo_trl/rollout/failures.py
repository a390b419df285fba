"""How a turn can end, and what is done about each way.

    ends as        when                                                                              default
    ok             it answered, or all its calls did
    result_cut     a result is longer than `max_result_tokens` (no limit), and is cut there          tell
    bad_arguments  arguments are missing, unknown or of another type than the tool's schema says     tell
    unknown_tool   there is no such tool                                                             tell
    unparsed_call  a call was begun that cannot be read                                              tell
    tool_error     the tool raised                                                                   tell
    timeout        it did not answer within `tool_timeout` (60 s), or its own limit                  tell
    over_budget    more than `max_calls_per_turn` (16) calls, which are not made; a call after       tell
                   `max_tool_calling_iterations` turns; text that a limit cut before the policy
                   ended it
    context_full   results do not fit into what is left of `max_completion_length` or of the         end
                   model's context; or the prompt alone leaves no room for a turn in it

`failure_policy` says what follows: `tell` the policy, as the result of its call, and go on; `end` the rollout, which
is scored as it stands; or `exclude` it from the statistics of its group and from the loss. Where the context is full
there is no room to tell anything; a rollout whose prompt fills it has no turn, and is scored as an empty answer.

    failure_policy: {timeout: exclude, unparsed_call: end}

A turn of several calls ends as its gravest call, in the order of this list. After its last allowed turn the policy is
told to answer, and ends if it calls again. A final tool's call ends the rollout as its answer, whatever became of
other calls of the turn, unless one of them is to `exclude` it. A turn whose calls failed and were told has a gain like
others; the turns of an excluded rollout have none. An evaluation leaves no rollout out: there `exclude` means `end`.
With `loss_type` "grpo" or "dr_grpo", rollouts that are left out still count in the denominator; with "dapo", the
default, and "bnpo" they do not. What tools themselves may do wrong, and what outages cost: `a2tgpo help tools`.
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
