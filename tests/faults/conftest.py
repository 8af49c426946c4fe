"""Says at the end how many faults were injected and how many inputs were tried."""

from typing import Any

import pytest
import torch
from injected import counted, train
from test_training import left_by


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if counted:
        by_kind = ", ".join(f"{kind} {count}" for kind, count in sorted(counted.items()))
        terminalreporter.write_line(f"injected: {counted.total()} ({by_kind})")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the uninterrupted run leaves, its folder, and the names in it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    torch.set_num_threads(threads)
    return left_by(folder), folder, sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """As the children that are killed have it."""
