"""What to do about an earlier training in the output folder: go on with a changed config, set aside, refuse.

Which of its checkpoints a training goes on from, ``checkpoint.py`` says.
"""

import logging
import os
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from detectron2.utils import comm

from .checkpoint import BEST
from .setup import leaves, load_config

# Of no account for what a training does, or told elsewhere
IGNORED = ("OUTPUT_DIR", "VERSION", "SEED", "MODEL.WEIGHTS", "MODEL.DEVICE", "ISO.WRITERS")

logger = logging.getLogger(__name__)


def changes(dumped, cfg):
    """How the config of a checkpoint, as text, differs from another one.

    A key that was new after the checkpoint had its default then.

    Returns:
        list[str]: "KEY old -> new" each, without the keys of `IGNORED`.
    """
    old, new = (dict(leaves(CfgNode(yaml.safe_load(text)))) for text in (dumped, cfg.dump()))
    defaults = dict(leaves(CfgNode(yaml.safe_load(load_config().dump()))))
    old = {key: defaults[key] for key in defaults.keys() & new.keys()} | old
    keys = [key for key in sorted(old.keys() | new.keys()) if key not in IGNORED]
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def check_folder_is_free(checkpointer, cfg):
    """Refuse to start a training in a folder that holds another one.

    Returns:
        list[Path]: the checkpoints there, of a training with the same config; in the main process.

    Raises:
        FileExistsError: a checkpoint there is of another config or cannot be read; in every process.
    """
    problem, files = None, []
    if comm.is_main_process():
        best = Path(checkpointer.save_dir, f"{BEST}.pth")
        files = [*checkpointer.numbered_files(), *([best] if best.is_file() else [])]
        if files or checkpointer.has_checkpoint():
            what = _whose(checkpointer, files, cfg)
            place = os.path.abspath(checkpointer.save_dir)
            problem = what and (
                f"OUTPUT_DIR {place} holds checkpoints {what}. --resume goes on from them, with the new "
                "config; another OUTPUT_DIR starts afresh. Or remove them first."
            )
    problem = comm.all_gather(problem)[0]
    if problem:
        raise FileExistsError(problem)
    return files


def _whose(checkpointer, files, cfg):
    """str: what a checkpoint in the folder is of, if not of a training with this config; else ""."""
    try:
        latest = checkpointer.get_checkpoint_file() if checkpointer.has_checkpoint() else files[0]
        state = torch.load(latest, map_location="cpu", mmap=True, weights_only=True)
        changed = changes(state["trainer"]["config"], cfg)
    # by the damage, or by what another program has put there
    except Exception:
        return "that cannot be read, or of an earlier version"
    return f"of a training with another config ({'; '.join(changed[:5])})" if changed else ""


def set_aside(files):
    """Move checkpoints of an earlier training to a new folder beside them, ``earlier-<n>``."""
    if not files:
        return
    folder = files[0].parent
    number = next(n for n in range(1, 10**6) if not (folder / f"earlier-{n}").exists())
    aside = folder / f"earlier-{number}"
    aside.mkdir()
    for file in [*files, folder / "last_checkpoint"]:
        if file.exists():
            file.rename(aside / file.name)
    logger.warning("The checkpoints of an earlier training with this config are in %s now", aside)


def go_on_with_new_values(optimizer, scheduler, load):
    """Load the state of optimizer and scheduler by ``load()``, but keep the hyperparameters they have now.

    So the learning rate, momentum and weight decay of the present config count, and what was accumulated
    (momentum, steps) that of the checkpoint. With a scheduler other than Detectron2's everything is that of
    the checkpoint: others compute a rate from the one before.

    Raises:
        ValueError: the optimizer has other groups of parameters than the checkpoint's.
    """
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    base_lrs = getattr(scheduler, "base_lrs", None)
    try:
        load()
    except ValueError as error:
        raise ValueError(
            f"The optimizer's state does not fit: {error}. The model, or a key that gives some weights a "
            "rate or decay of their own, has changed since the checkpoint. Undo that, or start from its "
            "weights alone: MODEL.WEIGHTS without --resume, in another OUTPUT_DIR."
        ) from error
    if not isinstance(scheduler, LRMultiplier):
        return
    scheduler.base_lrs = base_lrs
    for group, values, rate in zip(optimizer.param_groups, groups, scheduler.get_lr(), strict=True):
        group |= {**values, "lr": rate}
