"""the seven sets: which split is the test, how many questions each split has, and what the paper trains on.

Sizes are those of FlashRAG's collection. The paper's test sets add up from them:

    multi-hop    7,405 + 12,576 + 2,417 + 125 = 22,523    HotpotQA dev, 2Wiki dev, MuSiQue dev, Bamboogle test
    single-hop   3,610 + 11,313 + 14,267      = 29,190    NQ test, TriviaQA test, PopQA test

HotpotQA, 2WikiMultihopQA and MuSiQue do not publish the answers of their test splits, so dev is used instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...lookup import nearest


MULTI_HOP, SINGLE_HOP = "multi-hop", "single-hop"


@dataclass(frozen=True)
class QASet:
    """A set: whether its questions need several passages, which split is the test, and each split's size."""

    hops: str
    test: str
    sizes: dict[str, int]


SETS = {
    "hotpotqa": QASet(MULTI_HOP, "dev", {"train": 90_447, "dev": 7_405}),
    "2wikimultihopqa": QASet(MULTI_HOP, "dev", {"train": 15_000, "dev": 12_576}),
    "musique": QASet(MULTI_HOP, "dev", {"train": 19_938, "dev": 2_417}),
    "bamboogle": QASet(MULTI_HOP, "test", {"test": 125}),
    "nq": QASet(SINGLE_HOP, "test", {"train": 79_168, "dev": 8_757, "test": 3_610}),
    "triviaqa": QASet(SINGLE_HOP, "test", {"train": 78_785, "dev": 8_837, "test": 11_313}),
    "popqa": QASet(SINGLE_HOP, "test", {"test": 14_267}),
}
# The set that the paper trains on for test sets of each kind.
TRAINED_ON = {MULTI_HOP: "hotpotqa", SINGLE_HOP: "nq"}


def named(names: str | Sequence[str]) -> list[str]:
    """The sets with these names; "multi-hop" and "single-hop" stand for all sets of a kind.

    Example: ["nq", "multi-hop"] -> ["nq", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle"]
    """
    found: list[str] = []
    for name in [names] if isinstance(names, str) else names:
        of_kind = [known for known, qa_set in SETS.items() if qa_set.hops == name]
        if not of_kind and name not in SETS:
            known = [*SETS, *TRAINED_ON]
            raise ValueError(f"There is no set {name!r}.{nearest(str(name), known)} Known: {', '.join(known)}.")
        found += of_kind or [name]
    return list(dict.fromkeys(found))


def trained_on(tests: Sequence[str]) -> list[str]:
    """The sets that the paper trains on for these test sets.

    Example: ["bamboogle", "musique"] -> ["hotpotqa"]; ["bamboogle", "popqa"] -> ["hotpotqa", "nq"]
    """
    return list(dict.fromkeys(TRAINED_ON[SETS[name].hops] for name in tests))


def averages(tests: Sequence[str], answerable: bool = False) -> dict[str, dict[str, list]]:
    """The averages in a table: all sets of a kind, and all sets; with `answerable`, each also split by that column.

    Example: ["nq", "musique"] -> {"multi-hop": {"set": ["musique"]}, "single-hop": {"set": ["nq"]}, "all sets": {}}
    """
    kinds = {kind: [name for name in tests if SETS[name].hops == kind] for kind in TRAINED_ON}
    found: dict[str, dict[str, list]] = {kind: {"set": names} for kind, names in kinds.items() if names}
    if len(found) > 1:
        found["all sets"] = {}
    if answerable:
        for name, wanted in list(found.items()):
            found[f"{name}, answerable"] = {**wanted, "answerable": [True]}
            found[f"{name}, not answerable"] = {**wanted, "answerable": [False]}
    return found
