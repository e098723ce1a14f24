"""One process of a layout: `torchrun --nproc-per-node N -m polyloom.methods.pretrain.worker RUN_FOLDER`.

The run was prepared by `polyloom pretrain train`; its folder is on a disk that all processes see.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from polyloom.core.errors import PolyloomError, Stopped
from polyloom.core.files import write_text
from polyloom.methods.pretrain.config import TrainVerbConfig
from polyloom.runs.execute import find_verb
from polyloom.runs.folder import open_run


def main(folder: Path) -> int:
    """Train as one of the processes; what goes wrong is left in the run's artifacts in one line."""
    from polyloom.methods.pretrain.training import train_sharded

    run = open_run(folder, find_verb("pretrain.train")[1])
    rank = os.environ.get("RANK", "0")
    assert isinstance(run.config, TrainVerbConfig)
    # torchrun passes a stop on as SIGTERM: the step is finished and saved.
    signal.signal(signal.SIGTERM, lambda number, frame: run.request_stop())
    try:
        train_sharded(run.config, run)
    except Stopped:
        return Stopped.exit_code
    except Exception as error:
        reason = str(error) if isinstance(error, PolyloomError) else f"{type(error).__name__}: {error}"
        write_text(run.artifact(f"failed-{rank}.txt"), " ".join(reason.split())[:500])
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
