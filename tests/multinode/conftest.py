"""Two nodes for all tests here, and logins between them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.multinode.jobs import JOB, Nodes
from tests.multinode.nodes import ssh_between, two_nodes, why_no_nodes


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    reason = why_no_nodes()
    if reason:
        pytest.skip(reason)
    with two_nodes(tmp_path_factory.mktemp("nodes")) as pair:
        (pair[0].folder / "job.toml").write_text(JOB)
        for stage in (1, 2, 3):
            zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
            text = json.dumps({"zero_optimization": zero})
            (pair[0].folder / f"zero{stage}.json").write_text(text)
        yield pair


@pytest.fixture(scope="session")
def ssh(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    reason = why_no_nodes(("ip", "sshd", "ssh", "ssh-keygen", "pdsh"))
    if reason:
        pytest.skip(reason)
    return ssh_between(nodes, tmp_path_factory.mktemp("ssh"))
