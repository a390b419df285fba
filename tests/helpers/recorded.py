"""numbers and texts -> the folder of a run with records of rollouts, as training writes them."""

import json
import random
import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from a2tgpo_trl.recording import Recorder, Schedule
from a2tgpo_trl.report.series import STATE
from a2tgpo_trl.rollout.reading import OF_TRAINING, files_like
from a2tgpo_trl.rollout.record_files import read_records


STEPS_APART = 2
WORDS: dict[str, int] = {}  # the tokens of these records

# Text that a page or a terminal might take for something else.
HOSTILE = [
    *("<script>alert(1)</script>", "</script><script>alert(2)</script>", "<!-- <script>", "-->", "<![CDATA[x]]>"),
    *("<img src=x onerror=alert(3)>", "<svg/onload=alert(4)>", "<iframe src='http://127.0.0.1:9/x'></iframe>"),
    *("<style>body{display:none}</style>", "<base href='http://127.0.0.1:9/'>", "<meta http-equiv=refresh content=0>"),
    *("</textarea></title></style>", "javascript:alert(5)", "{{ data }} {{ scripts }}", "${alert(6)} `x`"),
    *("&lt;b&gt; &amp; &#x202e;", '" onmouseover="alert(7)', "' onfocus='alert(8)", "__proto__", "constructor"),
    *("\x00nul", "\x1b[31mred", "\x1b]0;title\x07", "\u202eright to left", "\u2066isolate\u2069", "\ud83dhalf"),
    *("\udfffhalf", "\u2028line\u2029paragraph", "\ufeffbom\u200b", "\U000e0041tag", "a\n" * 5000, "long" * 250_000),
]


def record(
    number: int,
    *,
    question: str = "Who is mayor of Rome?",
    result: str = "The mayor of Rome is Bo.",
    said: str = "Let me see.",
    gains: Sequence[float] = (4.5,),
    reward: float = 1.0,
    outcome_advantage: float = 0.5,
    credit: Sequence[float] = (0.25,),
    status: str = "ok",
    **more: Any,
) -> dict[str, Any]:
    """A rollout with a tool turn for each gain, then its answer."""
    completion: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for place, _ in enumerate(gains):
        function = {"name": "search", "arguments": {"query": f"{place}: {question[:40]}"}}
        ended = status if place == len(gains) - 1 else "ok"
        made = {**function, "status": ended, "result": result, "seconds": 0.2, "attempts": 1, "made": True}
        made["changes_state"] = False
        completion += [
            {"role": "assistant", "content": said, "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "name": "search", "content": result},
        ]
        turns.append({"status": ended, "calls": [made], "tokens_out": 9, "tokens_in": 7, "seconds": 0.2, "cut": False})
        turns[-1]["reward"] = None
    answer = {"role": "assistant", "content": f"<answer>{'Bo' if reward else 'Al'}</answer>"}
    last = {"status": "ok", "calls": [], "tokens_out": 5, "tokens_in": 0, "seconds": 0.0, "cut": False}
    last["reward"] = None
    values = [-9.0]
    for gain in gains:
        values.append(values[-1] + gain)
    return {
        "prompt": [{"role": "system", "content": "Search."}, {"role": "user", "content": question}],
        "completion": [*completion, answer],
        "answer": "Bo",
        "rewards": {"exact_match": reward, "f1": reward},
        "tool_turns": len(gains),
        "turns": [*turns, last],
        **{"ended": "answer", "excluded": False, "values": values, "gains": list(gains), "outcome": reward},
        "outcome_advantage": outcome_advantage,
        "advantages": [*(outcome_advantage + one for one in credit), outcome_advantage],
        "scores": [*(one * 2 for one in credit), None],
        "clip_scale": [*(1 + one / 10 for one in credit), 1.0],
        **{"round": 1, "group": number},
        **more,
    }


def with_tokens(one: dict[str, Any], ratios: Sequence[float], clipped: Sequence[int] = ()) -> dict[str, Any]:
    """The rollout with words as tokens: what each turn said, with these ratios repeated in order."""
    sampled: list[int] = []
    ids: list[int] = []
    for message in one["completion"]:
        words = re.findall(r"\s*\S+|\s+$", message["content"])
        sampled += [int(message["role"] == "assistant")] * len(words)
        ids += [WORDS.setdefault(word, len(WORDS)) for word in words]
    numbers = cycle(zip(ratios, clipped or [0] * len(ratios), strict=True))
    known = [next(numbers) if one else (None, None) for one in sampled]
    tokens = {
        **{"ids": ids, "sampled": sampled, "logps": [-0.5 if one else None for one in sampled]},
        **{"ratios": [ratio for ratio, _ in known], "clipped": [was for _, was in known]},
    }
    number = len(one["advantages"])
    return {**one, "prompt_ids": [], "tokens": tokens, "ratios": [1.25] * number, "clip_fractions": [0.5] * number}


def texts_of(ids: Sequence[int]) -> list[str]:
    """The texts of such tokens; a tokenizer writes no half characters."""
    words = list(WORDS)
    return [words[number].encode("utf-8", errors="backslashreplace").decode() for number in ids]


def rollouts_of(folder: Path) -> list[dict[str, Any]]:
    """What a run has recorded, in the order of its files."""
    return [record for file in files_like(folder, OF_TRAINING) for record in read_records(file)]


def as_trained(records: Sequence[dict[str, Any]]) -> dict[tuple[int, ...], dict[str, Any]]:
    """By a rollout's tokens: its identity and what its updates made of it."""
    names = ("answer", "rewards", "group", "round", "updates", "ratios", "clip_fractions", "advantages")
    return {
        tuple(one["tokens"]["ids"]): {
            **{name: one[name] for name in names},
            **{f"token {name}": [value or 0.0 for value in one["tokens"][name]] for name in ("logps", "ratios")},
        }
        for one in records
    }


def write_records(folder: Path, steps: dict[int, Sequence[dict[str, Any]]], format: str = "jsonl") -> None:
    """Write what steps (counted from 1) trained on."""
    for step, records in steps.items():
        texts = texts_of if any("tokens" in record for record in records) else None
        if texts is not None:  # some of these have none
            records = [{"prompt_ids": [], "tokens": {"ids": [], "sampled": []}, **record} for record in records]
        recorder = Recorder(folder, rank=0, schedule=Schedule(1), most_bytes=1e12, format=format, texts=texts)
        recorder.put(step - 1, records)
        recorder.close()


def drawn(
    rng: random.Random, groups: int, rollouts: int, words: int = 12, first: int = 0, **more: Any
) -> list[dict[str, Any]]:
    """The rollouts of a batch, with random numbers and texts."""
    found = []
    for group in range(groups):
        question = f"Question {first + group}: " + " ".join(f"word{rng.randrange(5000)}" for _ in range(8))
        for _ in range(rollouts):
            gains = [rng.gauss(2, 3) for _ in range(rng.randint(1, 4))]
            reward = float(rng.random() < 0.6)
            found.append(
                record(
                    group,
                    question=question,
                    result=" ".join(f"word{rng.randrange(5000)}" for _ in range(words)),
                    gains=gains,
                    credit=[rng.gauss(0, 0.3) for _ in gains],
                    reward=reward,
                    outcome_advantage=reward - 0.6,
                    status="timeout" if rng.random() < 0.05 else "ok",
                    **more,
                )
            )
    return found


def write_run(
    folder: Path, seed: int = 0, *, steps: int = 4, groups: int = 3, rollouts: int = 4, words: int = 12
) -> Path:
    """Write a finished run with records, a log and scores before and after."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [1 + STEPS_APART * i for i in range(steps)]
    for i, step in enumerate(numbers):
        write_records(folder, {step: drawn(rng, groups, rollouts, words, first=i * groups)})
    write_log(folder, rng, numbers[-1] + 1)
    (folder / "evaluation").mkdir()
    for when, mean in (("before", 0.3), ("after", 0.8)):
        score = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "number": 30}
        scores = {"everything": {"exact_match": score}, "groups": {}, "averages": {}, "plain": {}}
        (folder / "evaluation" / f"{when}.json").write_text(json.dumps(scores))
    return folder


def write_log(folder: Path, rng: random.Random, last: int) -> None:
    """Write a trainer's log with this many steps."""
    folder.mkdir(parents=True, exist_ok=True)
    by_turn = {f"{name}/turn_{place}": 0.5 for name in ("turn_ratio", "clip_fraction") for place in (1, 2, 3)}
    history = [
        {
            **{"step": step, "epoch": 0.1 * step, "reward": step / last, "rewards/exact_match/mean": step / last},
            **{"entropy": rng.random(), "clip_fraction/mean": 0.1, "gain/mean": rng.gauss(2, 1), "loss": float("nan")},
            **by_turn,
        }
        for step in range(1, last + 1)
    ]
    (folder / STATE).write_text(json.dumps({"log_history": [*history, {"step": last, "train_loss": 0.1}]}))
