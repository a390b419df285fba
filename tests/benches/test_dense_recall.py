"""The table of dense indexes. The bench itself uses 100,000 passages, a test a few hundred of them."""

import random

import pytest


def test_passages_of_a_subject_share_words():
    from dense_recall import subject_passages

    words = [f"w{n}" for n in range(5000)]
    rows = [set(row["text"].split()) for row in subject_passages(100, words, random.Random(0))]  # two subjects
    shared = [len(one & rows[0]) for one in rows[1:]]
    # 18 draws from the 40 words of a subject give 40 * (1 - (39 / 40)**18) = 14.6 different words, of which two
    # passages share 14.6**2 / 40 = 5.3. Passages of different subjects share 2 or more only by chance.
    near = [n for n in shared if n >= 2]
    assert 20 < len(near) < 80 and 4.5 < sum(near) / len(near) < 6.1


@pytest.mark.slow
def test_the_bench_prints_a_row_of_each_kind(capsys):
    import dense_recall

    assert dense_recall.main("--passages 1000 --queries 50 --device cpu".split()) == 0
    rows = {row.split()[0]: row.split()[1:] for row in capsys.readouterr().out.splitlines() if "shards" not in row}
    recalls = {kind: float(rows[kind][0]) for kind in ("flat", "ivf", "hnsw", "pq")}
    assert recalls["flat"] == 1 and all(0.5 < recall <= 1 for recall in recalls.values())
    assert float(rows["flat"][3]) >= 1  # MiB of the build: memory is measured
    assert float(rows["pq"][1]) < float(rows["flat"][1]) < float(rows["hnsw"][1])
