"""Start a layout's processes by fork, which costs one import for all: `-m tests.training.layout_fork FOLDER CASE ...`.

A case is `PPxDPxTP:steps[:word,word]`. The environment is what torchrun would set. Prints the first process's losses.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from pathlib import Path

from polyloom.training.layouts import Layout
from tests.training import layout_program


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def work(folder: Path, case: str, rank: int, size: int, port: int) -> int:
    shape, steps, *rest = case.split(":")
    words = rest[0].split(",") if rest else []
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pp, dp, tp = (int(part) for part in shape.split("x"))
    schedule = "interleaved-1f1b" if "interleaved" in words else "gpipe" if "gpipe" in words else "1f1b"
    layout = Layout(pp, dp, tp, "sp" in words, schedule)  # type: ignore[arg-type]
    try:
        layout_program.main(folder, int(steps), layout, words)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main(folder: Path, cases: list[str]) -> int:
    failed = 0
    for case in cases:
        pp, dp, tp = (int(part) for part in case.split(":")[0].split("x"))
        size, port, children = pp * dp * tp, free_port(), []
        for rank in range(size):
            child = os.fork()
            if child == 0:
                os._exit(work(folder, case, rank, size, port))
            children.append(child)
        failed += sum(os.waitpid(child, 0)[1] != 0 for child in children)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
