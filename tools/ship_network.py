"""Put a finished training among the networks that come with iso_d2, for `iso_d2.load`.

iso_d2/weights/NAME.json must have the text of the model card ("what", "data", "use"); training, metrics and
checksum are filled in. NAME.safetensors gets the weights, NAME.yaml the config of the training.

python tools/ship_network.py NAME OUTPUT_DIR --command "python tools/train_net.py ..." --commit 1234567 \
    --results "accuracy, seeds 1 to 3: ..."
"""

import argparse
import hashlib
import json
import math
from pathlib import Path

import torch
from detectron2.config import CfgNode
from safetensors.torch import save_file

from iso_d2.engine.trained import FOLDER
from iso_d2.files import replacing, write_atomically
from iso_d2.provenance import hardware, versions

MAX_BYTES = 3_000_000
# Of the last evaluation, what a model card holds
METRICS = ("segmentation/volume_dice", "segmentation/dice_loss", "classification/top", "bbox/AP")


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("run", type=Path, metavar="OUTPUT_DIR", help="with model_final.pth")
    parser.add_argument("--command", required=True, help="of the training")
    parser.add_argument("--commit", required=True, help="of the code that it ran")
    parser.add_argument(
        "--results", required=True, help="further results, in words, such as those of other seeds"
    )
    parser.add_argument("--opts", nargs="+", default=[], help="KEY VALUE: what the config shall say")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="(iso_d2/weights)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    checkpoint = torch.load(args.run / "model_final.pth", map_location="cpu", weights_only=True)
    state = {key: value.contiguous() for key, value in checkpoint["model"].items()}
    weights = args.folder / f"{args.name}.safetensors"
    cfg = CfgNode.load_cfg((args.run / "config.yaml").read_text(encoding="utf-8"))
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = "output", ""
    cfg.merge_from_list(args.opts)
    lines = (args.run / "metrics.json").read_text(encoding="utf-8").splitlines()
    last = {name: value for line in lines for name, value in json.loads(line).items()}
    card_file = args.folder / f"{args.name}.json"
    card = json.loads(card_file.read_text(encoding="utf-8"))
    with replacing(weights) as unfinished:
        save_file(state, unfinished)
        size = unfinished.stat().st_size
        if size > MAX_BYTES:
            raise SystemExit(f"error: {size} bytes, a network that comes with iso_d2 has at most {MAX_BYTES}")
    write_atomically(args.folder / f"{args.name}.yaml", cfg.dump())
    card |= {
        "training": {
            "command": args.command,
            "commit": args.commit,
            "steps": checkpoint["iteration"] + 1,
            "versions": versions(),
            "hardware": hardware(cfg.MODEL.DEVICE, 1),
        },
        "metrics": {
            name: round(value, 4)
            for name, value in last.items()
            if name.startswith(METRICS) and math.isfinite(value)  # of no large objects there is no AP
        },
        "results": args.results,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    write_atomically(card_file, json.dumps(card, indent=1) + "\n")
    print(f"{weights}: {size} bytes")


if __name__ == "__main__":
    main()
