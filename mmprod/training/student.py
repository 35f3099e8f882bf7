"""The run folder of a student, before it is trained: its teacher's codec and tokenizer, and a
configuration made from the teacher's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from mmprod.checkpoint import layout
from mmprod.checkpoint.run import Run
from mmprod.config.load import load_config
from mmprod.config.schema import Config
from mmprod.manifest import atomic_path, read_json, write_json
from mmprod.training.distill_task import check_student
from mmprod.training.prepare import claim, hash_of

SHARE_OF_STEPS = 0.25
SHARE_OF_RATE = 0.125
"""of the teacher's own training, by default: the student begins where the teacher ended"""


def student_config(teacher: Run, steps: int, overrides: Sequence[str]) -> Config:
    """The teacher's configuration with another sampler, data and start; `overrides` on top.

    Raises IntegrityError where the teacher has no model, ConfigError for a sampler, or codes and
    tokens, that it cannot teach.
    """
    teacher.weights_path("fusion")
    train = teacher.config.fusion_train
    length = max(1, round(train.steps * SHARE_OF_STEPS))
    root = str(teacher.root.resolve())
    changes = {
        "name": f"{teacher.name}-{steps}-steps",
        "data.path": str(teacher.data_root.resolve()),
        "sampler.image_steps": steps,
        "sampler.guidance": 0.0,
        "sampler.image_temperature": 1.0,
        "fusion_train.steps": length,
        "fusion_train.lr": train.lr * SHARE_OF_RATE,
        "fusion_train.eval_every": min(train.eval_every, length),
        "fusion_train.save_every": min(train.save_every, length),
        "fusion_train.init_from": root,
        "distill.teacher": root,
    }
    given = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    config = load_config(str(teacher.config_path), [*given, *overrides])
    check_student(teacher, config)
    return config


def prepare_student(teacher: Run, config: Config, root: Path) -> None:
    """Make the folder, or complete one that was interrupted; what is there stays.

    Raises ConfigError where `root` is something else, or another configuration's.
    """
    claim(config, root)
    codec = teacher.stage_folder("codec")
    files = [teacher.tokenizer_path]
    files += [codec / name for name in (layout.WEIGHTS, layout.METRICS, layout.INIT)]
    for source in files:
        copy = root / source.relative_to(teacher.root)
        if source.is_file() and not copy.is_file():
            copy.parent.mkdir(exist_ok=True)
            with atomic_path(copy) as temporary:
                shutil.copyfile(source, temporary)
    record = root / "codec" / layout.STAGE
    if not record.is_file():  # last: it says that the stage is finished
        finished = read_json(codec / layout.STAGE)
        write_json(record, finished | {"config_sha256": hash_of(config)})
