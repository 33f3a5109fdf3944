"""From command line to a config that this machine can run."""

import difflib
import logging
import os
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import add_iso_config
from ..data import register_coco_json, register_image_folder
from ..data.folds import register_folds
from ..data.lgg import named_by_split, without_split

# Meta-architectures whose training images are all of one size
ONE_SIZE = ("ImageClassifier", "UNetSegmentor")

# Of the configs that come with iso_d2: in an installed package, in a checkout
CONFIGS = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")

# Without effect where SOLVER.EPOCHS is above 0
IN_STEPS = ("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS", "TEST.EVAL_PERIOD")

logger = logging.getLogger(__name__)


def load_config(config_file="", opts=()):
    """Detectron2's and iso_d2's defaults, changed by a file and then by KEY VALUE pairs.

    The data sets of DATASETS.COCO_FORMAT and DATASETS.IMAGE_FOLDERS are registered. DATASETS.LGG_SPLIT
    renames LGG data sets in DATASETS.TRAIN and TEST: with "image", lgg_train becomes lgg_image_train (see
    ``iso_d2.data.lgg.named_by_split``). On a machine without CUDA, MODEL.DEVICE "cuda" becomes "cpu" and
    mixed precision with fp16 is turned off.

    Args:
        config_file (str or Path): a yaml file, or the name of one that comes with iso_d2, such as
            "risonet50_frcnn" or "configs/quick/isounet_phantom.yaml"; "" for the defaults alone.
        opts (sequence): keys and values in turn.

    Returns:
        CfgNode: not frozen.

    Raises:
        FileNotFoundError: there is no such file; the message names similar ones that come with iso_d2.
        KeyError: a key that does not exist; the message names similar ones.
        ValueError: the file is no yaml of keys, or asks for Python objects; an entry of one of these two is
            not as many strings as it should be; no such LGG split, or one that is not the split that names in
            DATASETS.TRAIN or TEST say.
    """
    cfg = get_cfg()
    add_iso_config(cfg)
    untyped = {key for key, value in leaves(cfg) if value is None}
    if config_file:
        config_file = find_config(config_file)
        _merge_file(cfg, str(config_file))
        empty = [key for key, value in leaves(cfg) if value is None and key not in untyped]
        if empty:
            raise ValueError(
                f"Config file {os.path.abspath(config_file)!r} has no value for {', '.join(empty)}"
            )
        # In the config.yaml of a run the names have a split already, which ``opts`` may change.
        _rename_lgg(cfg, without_split)
    # yacs refuses another type than a value has, such as ISO.ORTHO.COEFF "auto" after a number, but not after
    # None
    for key in untyped.intersection(opts[::2]):
        cfg.merge_from_list([key, None])
    _merge(cfg, cfg.merge_from_list, list(opts))
    in_steps = [key for key in IN_STEPS if key in opts[::2]]
    if in_steps and cfg.SOLVER.EPOCHS > 0:
        logger.warning(
            "%s: no effect, since SOLVER.EPOCHS is %s and gives the schedule in epochs. Set EPOCHS, "
            "EPOCH_STEPS, WARMUP_EPOCHS and TEST.EVAL_EPOCHS instead, or all four to 0 (EPOCH_STEPS to ())",
            *(", ".join(in_steps), cfg.SOLVER.EPOCHS),
        )
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE must be cpu, cuda or cuda:N, got {cfg.MODEL.DEVICE!r}") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No CUDA device here: running on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.PRECISION == "fp16":
        logger.warning("Mixed precision with fp16 needs CUDA: SOLVER.AMP.ENABLED is turned off (bf16 works)")
        cfg.SOLVER.AMP.ENABLED = False
    _register(cfg, "COCO_FORMAT", register_coco_json, ["name", "json file", "image folder"])
    _register(cfg, "IMAGE_FOLDERS", register_image_folder, ["name", "folder"])
    _rename_lgg(cfg, named_by_split)
    register_folds((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    return cfg


def find_config(name):
    """Path: of a config file, or of one that comes with iso_d2, if there is no such file here.

    Raises:
        FileNotFoundError: as in :func:`load_config`.
    """
    for file in (Path(name), Path(f"{name}.yaml")):
        if file.is_file():
            return file
    folder = next(folder for folder in CONFIGS if folder.is_dir())
    named = os.path.normpath(name).removeprefix("configs" + os.sep)
    for file in (folder / named, folder / f"{named}.yaml"):
        if not os.path.isabs(named) and ".." not in named and file.is_file():
            logger.info("Config %s, which comes with iso_d2", file)
            return file
    files = folder.rglob("[!B]*.yaml")  # not those called Base-...
    by_stem = {file.stem: str(file.relative_to(folder).with_suffix("")) for file in files}
    near = difflib.get_close_matches(Path(named).stem, by_stem, n=3, cutoff=0.5)
    raise FileNotFoundError(
        f"Config file {os.path.abspath(name)!r} does not exist, and none of this name comes with iso_d2"
        + (f"; similar ones: {', '.join(by_stem[stem] for stem in near)}" if near else "")
    )


def _rename_lgg(cfg, rename):
    datasets = cfg.DATASETS
    for key in ("TRAIN", "TEST"):
        datasets[key] = rename(datasets[key], datasets.LGG_SPLIT, datasets.LGG_FOLD, datasets.LGG_FOLDS)


def _register(cfg, key, register, parts):
    for entry in cfg.DATASETS[key]:
        if not isinstance(entry, (list, tuple)) or [type(part) for part in entry] != [str] * len(parts):
            raise ValueError(f"An entry of DATASETS.{key} must be [{', '.join(parts)}], got {entry!r}")
        register(*entry)


def setup(args):
    """Config, output folder, loggers and seed of a command.

    A training of an ImageClassifier or a UNetSegmentor, whose images are all of one size, lets cuDNN look for
    the fastest algorithms, whatever CUDNN_BENCHMARK says.

    Args:
        args (argparse.Namespace): of Detectron2's ``default_argument_parser``.

    Returns:
        CfgNode: frozen.

    Raises:
        FileNotFoundError, KeyError, ValueError: as in :func:`load_config`; options behind KEY VALUE, which
            would be taken for a key.
    """
    misplaced = [word for word in args.opts if word.startswith("--")]
    if misplaced:
        raise ValueError(f"{', '.join(misplaced)} must come before the first KEY VALUE")
    if args.config_file:
        args.config_file = str(find_config(args.config_file))  # default_setup reads it, too
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="iso_d2")
    default_setup(cfg, args)
    if cfg.MODEL.META_ARCHITECTURE in ONE_SIZE and not args.eval_only:
        torch.backends.cudnn.benchmark = True
    return cfg


def join_processes():
    """Join the processes that torchrun or SLURM's srun has started, as Detectron2's ``launch`` joins its own.

    torchrun sets what is read: LOCAL_RANK, RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    srun sets SLURM_PROCID, SLURM_LOCALID, SLURM_STEP_NUM_TASKS and SLURM_STEP_NUM_NODES; they count if
    MASTER_ADDR, the host of process 0, and MASTER_PORT are set beside them. (The script of sbatch itself has
    the first two, too.)

    Returns:
        bool: whether this is one of several such processes. If not, nothing is done.
    """
    env = os.environ
    by_torchrun = "RANK", "LOCAL_RANK", "WORLD_SIZE"
    by_srun = "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"
    if set(by_torchrun) <= set(env):
        names = by_torchrun
    elif {*by_srun, "MASTER_ADDR"} <= set(env):
        names = by_srun
    else:
        return False
    rank, local_rank, world_size = (int(env[name]) for name in names)
    if world_size == 1:
        return False
    print(f"Process {rank} of {world_size} joins the others", flush=True)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        # srun may show each process its own GPU alone
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo", rank=rank, world_size=world_size, timeout=DEFAULT_TIMEOUT
    )
    on_this_machine = env.get("LOCAL_WORLD_SIZE") or world_size // int(env["SLURM_STEP_NUM_NODES"])
    comm.create_local_process_group(int(on_this_machine))
    comm.synchronize()
    return True


def _merge_file(cfg, file):
    where = f"Config file {os.path.abspath(file)!r}"
    try:
        _merge(cfg, partial(cfg.merge_from_file, allow_unsafe=False), file)
    except KeyError as error:
        raise KeyError(f"{where}: {error.args[0]}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{where} builds on {error.filename!r} (_BASE_), which does not exist"
        ) from error
    # of yaml, yacs and the decoder, by fault
    except Exception as error:
        raise ValueError(
            f"{where} is not KEY: VALUE in yaml with values of the keys' types, or it holds Python objects "
            f"(!!python/...), which could run code and are not loaded: {error}"
        ) from error


def _merge(cfg, merge, changes):
    try:
        merge(changes)
    # yacs raises KeyError for the keys of a file and AssertionError for those of a list
    except (KeyError, AssertionError) as error:
        message = str(error.args[0]) if error.args else ""
        if "Non-existent" not in message:
            raise
        key = message.rsplit(" ", 1)[-1]
        near = difflib.get_close_matches(key, [name for name, _ in leaves(cfg)], n=3)
        raise KeyError(
            f"{message}. The keys of Detectron2 and of iso_d2 (add_iso_config was called) are known; "
            + (f"similar ones: {', '.join(near)}" if near else "none is similar")
        ) from error


def leaves(cfg, prefix=""):
    """Yield every key with its value."""
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
