"""How a turn can end, and what happens in each case.

    ends as        when                                                                              default
    ok             the turn is an answer, or all its calls succeeded
    result_cut     a result is longer than `max_result_tokens` (no limit) and is cut there           tell
    bad_arguments  arguments are missing, unknown or not of the type in the tool's schema            tell
    unknown_tool   there is no such tool                                                             tell
    unparsed_call  a call was started but cannot be parsed                                           tell
    tool_error     the tool raised an exception                                                      tell
    timeout        the tool did not answer within `tool_timeout` (60 s) or its own limit             tell
    over_budget    calls beyond `max_calls_per_turn` (16), which are not made; a call after          tell
                   `max_tool_calling_iterations` turns; text that a limit cut before the policy
                   finished, which ends the rollout even if it is set to `tell`
    context_full   results do not fit in what is left of `max_completion_length` or of the           end
                   model's context, or the prompt alone leaves no room for a turn in it

`failure_policy` sets what follows: `tell` the policy, as the result of its call, and go on; `end` the rollout, which
is scored as it stands; or `exclude` it from the statistics of its group and from the loss. When the context is full,
there is no room to tell anything; a rollout whose prompt fills it has no turn and is scored as an empty answer.

    failure_policy: {timeout: exclude, unparsed_call: end}

A turn with several calls ends as its gravest call, the one furthest down this list. After its last allowed turn the
policy is told to answer; if it calls again, the rollout ends. A final tool's call ends the rollout as its answer,
whatever happened to the other calls of the turn. There are two exceptions: a failure of another call that is set to
`exclude` excludes the rollout, and if another call cannot be made and that is set to `exclude` or `end`, no call of
the turn is made. A turn whose failed calls were told to the policy has a gain like any other; the turns of an excluded
rollout have none. Evaluations exclude no rollouts: there `exclude` means `end`. With `loss_type` "grpo" or "dr_grpo",
excluded rollouts still count in the denominator; with "dapo", the default, and "bnpo" they do not. For what tools
themselves may do wrong, and what outages cost, see `a2tgpo help tools`.
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
# exclude: the rollout ends, and is left out of the statistics of its group and out of the loss.
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
    """The default policies, overridden by the given ones; raises a ValueError for what is not possible."""
    policy: dict[str, Policy] = dict(DEFAULT_POLICY)
    for status, action in (given or {}).items():
        if status not in DEFAULT_POLICY:
            raise ValueError(
                f"failure_policy: there is no failure {status!r}; use one of "
                f"{', '.join(DEFAULT_POLICY)}.{nearest(str(status), DEFAULT_POLICY)}"
            )
        possible = ("end", "exclude") if status == "context_full" else get_args(Policy)
        if action not in possible:
            raise ValueError(
                f"failure_policy: {status} must be one of {', '.join(possible)}; got {action!r}."
                f"{nearest(str(action), possible)}"
            )
        policy[status] = action  # type: ignore[assignment]  # it is one of them
    return policy
