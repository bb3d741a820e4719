"""Run the host's main.py as a script: `python host_launcher.py path/to/main.py [arguments]`.

It ends when its standard input does. That is a pipe of the process that started it, which the system closes even
where that process was killed: no host is left behind.

Also needed because on Linux without a GPU the registry only offers CUDA builds of torchvision. Their extension
cannot load beside a CPU torch: `import torchvision` then fails for want of two operator schemas,
which are declared here.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

MISSING_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache  # which also keeps the library alive
def declare_torchvision_schemas() -> object | None:
    """Declare torchvision's operators where its extension cannot be loaded, once in a process."""
    spec = importlib.util.find_spec("torchvision")
    if not sys.platform.startswith("linux") or spec is None or spec.origin is None:
        return None
    import torch

    try:
        for extension in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(extension))
        return None
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for schema in MISSING_SCHEMAS:
            library.define(schema)
        return library


def end_with_standard_input() -> None:
    """End this process, as HostServer.stop does, once nobody holds the other end of its standard input."""

    def wait() -> None:
        while os.read(0, 1024):  # not sys.stdin: its lock would be held at the interpreter's end
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)  # a custom node may have taken the signal
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_standard_input()
    main_script = Path(sys.argv[1]).resolve()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(main_script.parent)
    torchvision_schemas = declare_torchvision_schemas()
    runpy.run_path(str(main_script), run_name="__main__")
