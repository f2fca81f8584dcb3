"""What workers are given to do in tests; imports nothing that takes long."""

import os
import signal
import time
from pathlib import Path

from cl.errors import UsageError


def once(marker):
    """A task whose worker dies the first time."""
    path = Path(marker)
    if path.suffix == ".dies" and not path.exists():
        path.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return path.name


def always(name):
    """A task whose worker dies each time if it is called so."""
    if name == "dies":
        time.sleep(0.2)  # the others have begun
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "fails":
        raise UsageError("as it was told")
    if name == "breaks":
        return 1 // 0
    time.sleep(0.5)
    return name
