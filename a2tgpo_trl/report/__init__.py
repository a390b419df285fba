"""records and logs of runs -> progress lines, scores, pictures and comparisons.

What is logged beside TRL's own metrics. `turn_1` is the first turn; the first eight are logged one by one. What has no
data is left out. An evaluation samples and scores, nothing else: with the prefix `eval_` it logs rewards, turns and
tools, and with `eval_gains` what the gain pass cost, whose gains are in the records of its rollouts. With
`log_completions`, the table has the advantage of each turn (`turn_advantages`) and their mean.

    gain/mean, std, share_positive; gain/turn_1/mean ...    what turns gain, and the share of them that gain at all
    gain/floor               what rounding may move a gain by: 1e-4 in float32, some hundredths in 16 bits and TF32
    gain/cells_below_floor   share of cells (a depth of a prompt) of two rollouts or more, in which no gain is further
                             than that from the mean
    gain/seconds, gain/forwards, gain/failed_probes    cost of the gain pass; values that were not finite
    value/before, value/after, value/after_turn_1 ...  how well the policy predicts the answer, from the prompt on
    turns/mean, turns/max, turns/survivors_turn_1 ...  turns a rollout; rollouts of a group with a gain at that depth
    turns/singleton_cells    share of cells with one rollout, which has nothing to be compared with
    turns/ok, turns/timeout ...                        share of turns that ended so (`a2tgpo help failures`)
    turn_rewards/failed_call/mean, turn_rewards/failed_call/turn_1 ...     what single turns earned
    clip_scale/mean, clip_scale/turn_1 ...             how far clip ranges are widened or narrowed
    clip_fraction/mean, clip_fraction/turn_1 ...       share of a turn's tokens that are clipped, by losses that clip:
                             above some hundredths the clip range is narrow for the updates; try a wider `epsilon`
    turn_ratio/mean, turn_ratio/turn_1 ...             importance ratio
    sampler_gap/mean, absolute; sampler_gap/turn_1, absolute_turn_1 ...    log-probabilities of the sampler minus the
                             trainer's, over tokens: about 0.01 by rounding in 16 bits, more if weights were not pushed
    sampler_gap/growth, sampler_gap/alarm              gap after the first turn over that of it; 1 where it is above 2
    groups/teach_nothing     share of groups with equal rewards and equal gains, in the batch that is trained on
    groups/resampled, groups/reward                    with `resample_limit`: groups rolled out again; mean reward of
                             the batch that is trained on (`reward` is of all rollouts that were made for it)
    tools/search/ok, tools/search/timeout ..., tools/search/calls    of each tool: share of calls; calls a rollout
    tools/seconds, tools/retries, tools/hung           seconds of a call; further attempts; calls that never came back
    rollouts/excluded, rollouts/failed_rewards         share of rollouts left out of the loss; of rewards that failed
    rollouts/sampling_seconds, rollouts/tool_seconds   of the slowest process
    states/alone, states/turns, states/seconds         where states are compared: share of turns alone in theirs; turns
                             of a prompt that begin in one, on average; seconds that it took the slowest process
    shaping/passed, share, mean, seconds               with `failure_shaping`
    rewards/exact_match/mean ...                       of each reward; with weight 0 in `reward_weights` only logged

`eval_rewards/f1/mean` and the like can be the `metric_for_best_model`. Where the best model is looked for, or the
learning rate follows a plateau, and none is named, it is `reward`.

    progress.py           steps of a run -> lines on a terminal
    scores.py             records -> scores with intervals
    paired.py             two evaluations of the same questions -> what differs, and whether by chance
    paper_table.py        scores of evaluations -> a row of a table, beside a paper's
    gains.py              records with gains -> what turns gained that found the answer, and the others
    series.py             runs that differ by their seed alone -> one series of each metric
    seeds.py              a number of each seed -> mean and interval
    plots.py              series -> learning curves, numbers by turn, bars
    looks.py              how lines and bars look, in grey as well; PNG and SVG
    comparison.py         runs of several methods and seeds -> areas under their curves, side by side
    nothing_to_learn.py   a run that learnt nothing -> a warning at its end, and what to look at
"""
