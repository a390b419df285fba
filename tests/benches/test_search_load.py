"""The load on a search server. The bench itself uses 1 million passages, a test a twentieth of them."""

import pytest
import search_load
from search_load import Load, measure


def test_the_bench_prints_what_it_measured(capsys):
    assert search_load.main("--passages 5000 --clients 2 --seconds 1".split()) == 0
    assert " requests of 2 clients in 1 s: 0 errors, p50 " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.alone
def test_load_of_16_clients_has_no_errors_and_server_memory_below_index_size(tmp_path):
    found = measure(Load(passages=500_000, clients=16, seconds=10), tmp_path)
    assert found.errors == 0 and found.requests > 100
    assert found.p99 < 5 * found.p50
    assert 0 < found.server_mib < found.index_mib
