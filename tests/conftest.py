import gc
import os


# Set before the imports: huggingface_hub reads these when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start; this one is set below
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the hub, and none may wait for it
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import pytest  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from a2tgpo_trl.tools.calls import Limits  # noqa: E402
from a2tgpo_trl.tools.runner import ToolRunner  # noqa: E402


torch.set_num_threads(1)  # with models this small, a second thread costs more than it gains

# The first example of a test pays for imports and kernels, so a time limit per example would fail on slow machines.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


def pytest_collection_finish() -> None:
    # Each training ends with a full garbage collection, which would scan everything imported: a second or two.
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Up to four workers for a plain `pytest`; tests chosen by name or marker run in this process."""
    chosen = config.option.keyword or any(word.startswith("-m") for word in config.invocation_params.args)
    everything = config.args_source is config.ArgsSource.TESTPATHS and not chosen
    return min(4, len(os.sched_getaffinity(0))) if everything else 0  # each worker takes a gigabyte


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.make_tokenizer()


@pytest.fixture
def make_runner():
    """A function that makes runners, which are closed after the test."""
    made = []

    def make(settings=None, **limits):
        made.append(ToolRunner(Limits(**limits), settings))
        return made[-1]

    yield make
    for runner in made:
        runner.close()
