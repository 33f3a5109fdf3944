"""risonet50_frcnn_fpn.yaml as a LazyConfig of Detectron2: all parts written out, to be changed in Python.

Detectron2's tools/lazyconfig_train_net.py trains it with one more line in its do_train, before the training
starts: trainer.register_hooks(instantiate(cfg.train.hooks)). Without that line there is no penalty.
"""

import albumentations
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, GeneralizedRCNN, StandardROIHeads
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

from iso_d2.data import AlbumentationsMapper
from iso_d2.engine import DeltaInitHook, OrthogonalityLossHook
from iso_d2.engine.optimizer import clipped_sgd
from iso_d2.modeling import ISONet

model = L(GeneralizedRCNN)(
    backbone=L(FPN)(
        bottom_up=L(ISONet)(depth=50, residual=True, out_features=["res2", "res3", "res4", "res5"]),
        in_features="${.bottom_up.out_features}",
        out_channels=256,
        top_block=L(LastLevelMaxPool)(),
    ),
    proposal_generator=L(RPN)(
        in_features=["p2", "p3", "p4", "p5", "p6"],
        head=L(StandardRPNHead)(in_channels="${...backbone.out_channels}", num_anchors=3),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[32], [64], [128], [256], [512]],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64],
            offset=0.0,
        ),
        anchor_matcher=L(Matcher)(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(2000, 1000),  # in training, in inference
        post_nms_topk=(1000, 1000),
    ),
    roi_heads=L(StandardROIHeads)(
        num_classes=3,
        batch_size_per_image=512,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False),
        box_in_features=["p2", "p3", "p4", "p5"],
        box_pooler=L(ROIPooler)(
            output_size=7, scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32], sampling_ratio=0, pooler_type="ROIAlignV2"
        ),
        box_head=L(FastRCNNConvFCHead)(
            input_shape=L(ShapeSpec)(channels="${....backbone.out_channels}", height=7, width=7),
            conv_dims=[],
            fc_dims=[1024, 1024],
        ),
        box_predictor=L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels="${...box_head.fc_dims.1}"),
            num_classes="${..num_classes}",
            box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            test_score_thresh=0.05,
        ),
    ),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],  # no layer normalizes, so the input must have the size of 1
    input_format="RGB",
)

dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_pbc_train"),
        mapper=L(AlbumentationsMapper)(
            is_train=True,
            augmentations=[
                L(albumentations.Resize)(height=512, width=512),
                L(albumentations.HorizontalFlip)(p=0.5),
            ],
            image_format="${model.input_format}",
        ),
        total_batch_size=8,
        num_workers=2,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_pbc_test", filter_empty=False),
        mapper=L(AlbumentationsMapper)(
            is_train=False,
            augmentations=[L(albumentations.Resize)(height=512, width=512)],
            image_format="${model.input_format}",
        ),
        num_workers=2,
    ),
    evaluator=L(COCOEvaluator)(dataset_name="${..test.dataset.names}"),
)

optimizer = L(clipped_sgd)(
    params=L(get_default_optimizer_params)(
        # as in the paper's code; the residual scales have a tenth of the rate
        overrides={"threshold": {"weight_decay": 0.0}, "scale": {"lr": 0.001}},
    ),
    lr=0.01,
    momentum=0.9,
    weight_decay=1e-4,
    clip=10.0,  # nothing normalizes an unlucky batch away
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[3000, 4000], num_updates="${train.max_iter}"
    ),
    warmup_length=500 / 4500,
    warmup_factor=0.001,
)

train = dict(
    output_dir="output",
    init_checkpoint="",
    max_iter=4500,
    hooks=[
        # ISONet starts like this by itself; the hook is for a ResNet or another network in its place.
        L(DeltaInitHook)(include=["backbone.bottom_up"], weights_loaded="${train.init_checkpoint}"),
        L(OrthogonalityLossHook)(coeff=1e-4),
    ],
    amp=dict(enabled=False),
    ddp=dict(),
    checkpointer=dict(period=500),
    eval_period=1500,
    log_period=20,
    device="cuda",
)
