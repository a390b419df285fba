"""The seven sets in miniature: a dozen invented questions per split, in files like those of FlashRAG's collection."""

import json
from pathlib import Path
from typing import Any

from a2tgpo_trl.tasks.qa.sets import SETS


RIVERS = "Arve Bosna Cinca Dyle Enza Fulda Gail Havel Isar Jiu Krka Loue".split()
ROWS = len(RIVERS)  # of each split
PASSAGES = [
    text
    for i, river in enumerate(RIVERS)
    for text in (
        f"{river} Bridge: it was built by Mason {i}.",
        f"Mason {i}: born in Hamlet {i}, in the year {1800 + i}.",
    )
]


def row(name: str, split: str, i: int) -> dict[str, Any]:
    """The i-th row. No question is in two splits or in two sets."""
    first, second = f"{RIVERS[i]} Bridge", f"Mason {i}"
    question = f"Where was the builder of {first} born, {name} {split}?"
    given = {"id": f"{split}_{i}", "question": question, "golden_answers": [f"Hamlet {i}", f"the hamlet {i}"]}
    return {**given, "metadata": _metadata(name, first, second, i)}


def _metadata(name: str, first: str, second: str, i: int) -> dict[str, Any]:
    if name in ("hotpotqa", "2wikimultihopqa"):
        # A title is repeated for each of its sentences.
        facts = {"title": [first, first, second], "sent_id": [0, 1, 0]}
        context = {"title": [first, second], "sentences": [[PASSAGES[2 * i]], [PASSAGES[2 * i + 1]]]}
        return {"type": "bridge", "supporting_facts": facts, "context": context}
    if name == "musique":
        steps = [
            {"question": question, "support_paragraph": {"title": title, "paragraph_text": text}}
            for question, title, text in (
                (f"Who built {first}?", first, PASSAGES[2 * i]),
                ("Where was #1 born?", second, PASSAGES[2 * i + 1]),
            )
        ]
        return {"question_decomposition": steps}
    return {}


def write_rows(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_sets(folder: Path) -> Path:
    """Write all splits of all sets below this folder."""
    for name, qa_set in SETS.items():
        for split in qa_set.sizes:
            write_rows(folder / name / f"{split}.jsonl", [row(name, split, i) for i in range(ROWS)])
    return folder
