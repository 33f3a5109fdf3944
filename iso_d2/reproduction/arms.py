"""The experiments of the report, and what stands beside them, in the order in which they are run.

Report: "Deep Isometric Learning for Visual Recognition", project report, IE663, 2021.
"""

def make_arms():
    """list[Arm]: all of them, in the order in which they are run."""
    isonet_small = {
        key: small_cifar(f"{label}-20", f"configs/cifar/{key}18_cifar10.yaml", CIFAR_EPOCHS)
        for key, label in (("risonet", "R-ISONet"), ("isonet", "ISONet"))
    }
    arms = [cifar_arm(10, net, REPORTS_GAMMA, isonet_small[net]) for net in ("risonet", "isonet")]
    arms += [mri_arm("image", key) for key in ("isounet", "unet-bn")]
    arms += [cifar_arm(100, net, REPORTS_GAMMA) for net in ("risonet", "isonet")]
    arms += [
        coco_arm(
            "coco-scratch-risonet-c5",
            "coco-scratch",
            "R-ISONet + Faster R-CNN (the report's)",
            full_coco("R-ISONet-50", "configs/risonet50_frcnn.yaml"),
        ),
        coco_arm(
            "coco-scratch-resnet-fpn-bn",
            "coco-scratch",
            "ResNet FPN + Faster R-CNN, batch norm (the report's)",
            full_coco("ResNet-50 FPN, batch norm", RESNET50_FPN),
            small_coco("ResNet-18 FPN, batch norm", 2, COCO_ITERATIONS),
        ),
    ]
    arms += [mri_arm("patient", key) for key in ("isounet", "unet-bn")]
    arms += [cifar_arm(number, net, "3e-4") for number in (10, 100) for net in ("risonet", "isonet")]
    arms += [
        Arm(
            name="cifar10-ablation-none",
            group="cifar",
            table="ablation",
            label="R-ISONet, all parts",
            needs=("cifar10",),
            full=f"the same as cifar10-risonet-gamma{REPORTS_GAMMA}",
            small=small_cifar("R-ISONet-20", RISONET_CIFAR10, ABLATION_EPOCHS, train_set=False),
        ),
        *ablation_arms(),
    ]
    resnet_small = {
        norm: small_cifar(net, f"configs/cifar/resnet18{suffix}_cifar10.yaml", CIFAR_EPOCHS, seconds=0.75)
        for norm, net, suffix in (
            ("bn", "ResNet-20, batch norm", ""),
            ("nonorm", "ResNet-20, ReLU, no norm", "_nonorm"),
        )
    }
    arms += [cifar_resnet_arm(10, norm, resnet_small[norm]) for norm in ("bn", "nonorm")]
    arms += [cifar_resnet_arm(100, norm) for norm in ("bn", "nonorm")]
    arms += [mri_arm(split, "unet-relu") for split in ("image", "patient")]
    arms += [
        coco_arm(
            "coco-scratch-risonet-fpn",
            "coco-scratch",
            "R-ISONet FPN + Faster R-CNN",
            full_coco("R-ISONet-50 FPN", RISONET50_FPN),
            small_coco("R-ISONet-18 FPN", 2, COCO_ITERATIONS),
        ),
        *(
            coco_arm(
                f"coco-scratch-resnet-fpn-{norm}",
                "coco-scratch",
                f"ResNet FPN + Faster R-CNN, {words}",
                full_coco(f"ResNet-50 FPN, {words}", f"configs/resnet50_{norm}_frcnn_fpn.yaml"),
            )
            for norm, words in (("gn", "group norm"), ("nonorm", "ReLU, no norm"))
        ),
        *batch_arms(1),
        *batch_arms(2),
        pretraining_arm("risonet", "R-ISONet-50", "configs/cifar/risonet18_cifar100.yaml"),
        pretraining_arm("resnet", "ResNet-50, batch norm", "configs/cifar/resnet18_cifar100.yaml", *RESNET50),
    ]
    arms += [
        coco_arm(
            "coco-pretrained-risonet-fpn",
            "coco-pretrained",
            "R-ISONet FPN + Faster R-CNN, pretrained",
            full_coco("R-ISONet-50 FPN", RISONET50_FPN),
            starts_from="pretrain-cifar100-risonet",
            weights="pretrained/risonet50_imagenet.pth",
        ),
        coco_arm(
            "coco-pretrained-resnet-fpn-bn",
            "coco-pretrained",
            "ResNet FPN + Faster R-CNN, batch norm, pretrained",
            full_coco("ResNet-50 FPN, batch norm", RESNET50_FPN),
            starts_from="pretrain-cifar100-resnet",
            weights="pretrained/resnet50_imagenet.pkl",
        ),
    ]
    return arms


ARMS = make_arms()
