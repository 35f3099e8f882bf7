"""Reading what training left: run folders, step folders, consolidated weights.

`open_run` and `list_steps` are torch-free; `mmprod.checkpoint.models` (load_models) needs torch.
"""

from mmprod.checkpoint.run import STAGES, Run, StageRecord, open_run
from mmprod.checkpoint.steps import StepFolder, list_steps, verify_step

__all__ = ["STAGES", "Run", "StageRecord", "StepFolder", "list_steps", "open_run", "verify_step"]
