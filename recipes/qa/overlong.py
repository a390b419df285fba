"""What dapo.yaml names: DAPO's price on length, with the paper's 6,192 tokens a rollout and buffer of 2,000."""

from trl.rewards import get_soft_overlong_punishment


overlong = get_soft_overlong_punishment(max_completion_len=6192, soft_punish_cache=2000)
