"""What workers share in the folder of a run, and the tensors in it."""

import random
import shutil
from typing import Any

import torch

from samclip_core.io.folder import Folder
from training import workers


def check_shared(folder: Folder, device: torch.device) -> None:
    """Raise ValueError, on all workers alike, unless each of them sees a file of worker 0."""
    token = float(random.SystemRandom().randrange(1, 2**24))  # exact in float32
    own = torch.tensor([token if workers.rank() == 0 else 0.0], device=device)
    # A new name each time: network file systems remember for seconds what a known one held.
    name = f".shared-{workers.read(workers.summed(own))[0]:.0f}"
    if workers.rank() == 0:
        with folder.replacing(name) as file:
            file.touch()
    workers.wait(device)
    blind = torch.tensor([float(not folder.exists(name))], device=device)
    total = workers.read(workers.summed(blind))[0]
    if workers.rank() == 0:
        folder.remove(name)
    if total:
        raise ValueError(
            f"{total:.0f} of {workers.count()} workers do not see what worker 0 writes to "
            f"{folder.url}: expected a folder that all nodes share, or a URL such as s3://…, as "
            "--out"
        )


def load_tensors(folder: Folder, name: str) -> Any:
    """Return the content of a file of ``save_tensors``, on the CPU."""
    with folder.open(name) as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def save_tensors(folder: Folder, name: str, content: object) -> None:
    """Write tensors into a file. Raises OSError, which says what to do, if that fails."""
    try:
        with folder.replacing(name) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        free = ""
        if folder.disk is not None:
            free = f": {shutil.disk_usage(folder.disk).free / 2**20:.0f} MiB are free there"
        raise OSError(
            f"{name} could not be written to {folder.url} ({error}){free}; free some space and "
            "start the run again, it resumes from its last saved state"
        ) from error
