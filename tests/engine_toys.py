"""A model, images and a config small enough to train in seconds. Child processes import it, too."""

import os

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase, SimpleTrainer, create_ddp_model
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from PIL import Image
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.optim import ZeroRedundancyOptimizer

from iso_d2.config import add_iso_config
from iso_d2.engine import OrthogonalityLossHook, Trainer
from iso_d2.modeling import IsoBlock, ISONet

HEIGHT, WIDTH = 32, 48
BOX = [8, 8, 24, 24]


def tiny_resnet(norm=""):
    """Detectron2's own ResNet: a 7x7 stem, res2 without and res3 with a projection.

    It is 8 wide: on a CPU without AVX-512 torch 2.14.1 writes beyond its memory in the gradient of a
    channels-last 1x1 convolution of stride 2 that reads fewer channels.
    """
    stages = [
        ResNet.make_stage(BasicBlock, 2, in_channels=8, out_channels=8, norm=norm),
        ResNet.make_stage(BasicBlock, 1, in_channels=8, out_channels=16, norm=norm, stride_per_block=[2]),
    ]
    return ResNet(BasicStem(3, 8, norm=norm), stages, out_features=["res3"])


class ToyModel(nn.Module):
    """A backbone whose features, squared, are the loss; or nothing is, and the loss is a constant."""

    def __init__(self, backbone, task_loss=True):
        super().__init__()
        self.backbone = backbone
        self.task_loss = task_loss

    def forward(self, batch):
        if not self.training:
            return [self.predict(x) for x in batch]
        device = next(self.parameters()).device
        images = torch.stack([x["image"].to(device).float() for x in batch]) / 255
        features = next(iter(self.backbone(images).values()))
        return {"loss_toy": features.square().mean() if self.task_loss else 0 * features.sum() + 1.0}

    def predict(self, image):
        instances = Instances((image["height"], image["width"]))
        instances.pred_boxes = Boxes(torch.tensor([BOX], dtype=torch.float32))
        instances.scores = torch.tensor([0.9])
        instances.pred_classes = torch.tensor([0])
        return {"instances": instances}


@META_ARCH_REGISTRY.register()
class ToyDetector(ToyModel):
    """The toy model as a meta-architecture. In inference it always finds the true box."""

    def __init__(self, cfg):
        super().__init__(tiny_resnet())


def toy_batches(n=2, **more):
    """An endless loader of one constant batch."""
    image = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    while True:
        yield [{"image": image, **more} for _ in range(n)]


def register_toy_data(folder, name, count=4):
    """Write `count` images and register them under `name`, in a name space of their own."""
    records = []
    for i in range(count):
        path = os.path.join(folder, f"{name}_{i}.png")
        pixels = np.full((HEIGHT, WIDTH, 3), 40 * i, dtype=np.uint8)
        pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
        Image.fromarray(pixels).save(path)
        annotation = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        record = {"file_name": path, "image_id": i, "height": HEIGHT, "width": WIDTH}
        records.append({**record, "annotations": [annotation]})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["square"], evaluator_type="coco")


def unregister(name):
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def toy_config(output_dir, *opts):
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ToyDetector"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.DATASETS.TRAIN = ("toy_train",)
    cfg.DATASETS.TEST = ("toy_test",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MAPPER = "detectron2"
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    cfg.INPUT.MIN_SIZE_TEST = HEIGHT
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.BASE_LR = 0.01
    cfg.SOLVER.MAX_ITER = 3
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.merge_from_list(list(opts))
    return cfg


def train_in_one_process(folder, device="cpu"):
    """What each process of a distributed training does; it leaves its weights in `folder`."""
    torch.set_num_threads(1)
    images = os.path.join(folder, f"images{comm.get_rank()}")
    os.mkdir(images)
    for name in ("toy_train", "toy_test"):
        register_toy_data(images, name)
    trainer = Trainer(toy_config(folder, "SOLVER.MAX_ITER", 2, "SEED", 1, "MODEL.DEVICE", device))
    trainer.resume_or_load(resume=False)
    trainer.train()
    torch.save(trainer.model.module.state_dict(), os.path.join(folder, f"rank{comm.get_rank()}.pth"))


class Unused(nn.Module):
    """A backbone with a convolution that its features do not need."""

    def __init__(self, backbone):
        super().__init__()
        self.used = backbone
        self.unused = nn.Conv2d(40, 40, 3, bias=False)  # of the largest share

    def forward(self, x):
        return self.used(x)


def penalised_training(model, hook, optimizer=None):
    """Two steps; each layer's name that the process writes or penalises, losses as gathered, weights."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = SimpleTrainer(model, toy_batches(), optimizer)
    written = {}

    class Look(HookBase):
        def after_step(self):
            for name, (value, _) in self.trainer.storage.latest().items():
                written.setdefault(name, value)

    trainer.register_hooks([hook, Look()])
    trainer.train(0, 2)
    module = getattr(model, "module", model)
    return {"written": written, "layers": list(hook.penalty.convs), "weights": module.state_dict()}


def toy_with_random_weights(tensor_loss=False, unused=False):
    torch.manual_seed(0)
    backbone = Unused(tiny_resnet()) if unused else tiny_resnet()
    model = TensorToy(backbone) if tensor_loss else ToyModel(backbone)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


class TensorToy(ToyModel):
    """The toy model with one tensor as its loss."""

    def forward(self, batch):
        return super().forward(batch)["loss_toy"]


def penalise_in_one_process(folder, tensor_loss, unused):
    """What each process of a distributed training with nothing but the penalty hook does."""
    torch.set_num_threads(1)
    model = create_ddp_model(toy_with_random_weights(tensor_loss, unused), device_ids=None)
    result = penalised_training(model, OrthogonalityLossHook(0.1, log_period=1))
    torch.save(result, os.path.join(folder, f"penalised{comm.get_rank()}.pth"))


def isometric_toy():
    """ISONet-8 as a toy model. It has no residual scales, numbers without dimensions, which FSDP refuses."""
    torch.manual_seed(0)
    model = ToyModel(ISONet(8, residual=False, stem="cifar", out_features=["res4"]))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def train_sharded(folder):
    """What each process does to train by each kind of sharding: its weights, or its error, by name."""
    torch.set_num_threads(1)
    mesh, cpu = init_device_mesh("cpu", (2,)), torch.device("cpu")

    def sharded(reshard):
        model = isometric_toy()
        for module in (model.backbone.res2, model.backbone.res3, model):
            fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
        return model

    def flat(strategy, **options):
        policy = ModuleWrapPolicy({IsoBlock})
        options = {"sharding_strategy": strategy, "device_id": cpu, **options}
        return FullyShardedDataParallel(isometric_toy(), auto_wrap_policy=policy, **options)

    def data_parallel():
        return create_ddp_model(isometric_toy(), device_ids=None)

    def weights(model):
        if isinstance(model, FullyShardedDataParallel):
            with FullyShardedDataParallel.summon_full_params(model):
                return [p.clone() for p in model.parameters()]
        return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]

    kinds = {
        "DDP": data_parallel,
        "ZeRO": data_parallel,
        "fully_shard, whole": lambda: sharded(False),
        "fully_shard": lambda: sharded(True),
        "FSDP, whole": lambda: flat(ShardingStrategy.SHARD_GRAD_OP, use_orig_params=True),
        "FSDP": lambda: flat(ShardingStrategy.FULL_SHARD),
        "FSDP, original parameters": lambda: flat(ShardingStrategy.FULL_SHARD, use_orig_params=True),
    }
    found = {}
    for name, make in kinds.items():
        model, options = make(), {"lr": 0.05, "momentum": 0.9}
        if name == "ZeRO":
            optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, **options)
        else:
            optimizer = torch.optim.SGD(model.parameters(), **options)
        try:
            penalised_training(model, OrthogonalityLossHook(0.01), optimizer)
            found[name] = weights(model)
        except ValueError as error:
            found[name] = str(error)
    torch.save(found, os.path.join(folder, f"sharded{comm.get_rank()}.pth"))


def trained(folder, *opts, resume=True, hook=None):
    torch.manual_seed(0)
    trainer = Trainer(toy_config(folder, "SEED", 1, "DATASETS.TEST", "()", *opts))
    if hook:
        trainer.register_hooks([hook])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def final(folder):
    return torch.load(folder / "model_final.pth")


class At(HookBase):
    """Calls a function after a step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def after_step(self):
        if self.trainer.iter == self.step:
            self.function()
