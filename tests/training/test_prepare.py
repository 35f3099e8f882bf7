"""What decides whether a folder belongs to a job: the hash of its configuration."""

from __future__ import annotations

from mmprod.manifest import sha256_bytes
from mmprod.training.prepare import hash_of
from tests.training.mini import mini_config


def test_runs_made_before_a_key_was_there_go_on() -> None:
    config = mini_config()
    before = {"log": True, "distill": True, "fusion": {"contrast"}}
    assert hash_of(config) == sha256_bytes(config.model_dump_json(exclude=before).encode())
    changed = [
        hash_of(config.model_copy(update={name: section.model_copy(update=keys)}))
        for name, section, keys in (
            ("fusion", config.fusion, {"contrast": "batch"}),
            ("distill", config.distill, {"teacher": "runs/a"}),
            ("fusion", config.fusion, {"text_weight": 0.25}),
        )
    ]
    assert len({hash_of(config), *changed}) == 4
