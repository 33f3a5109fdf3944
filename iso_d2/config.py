"""Every configuration key that iso_d2 adds to Detectron2's, with its default."""

from detectron2.config import CfgNode as CN


def add_iso_config(cfg):
    """Add the keys of iso_d2 to a Detectron2 config, in place.

    Calling it twice is harmless: keys that exist keep their values.

    Args:
        cfg (CfgNode): a Detectron2 config, usually ``get_cfg()``.
    """
    _add_missing(cfg, _iso_config())


def _add_missing(cfg, defaults):
    for key, value in defaults.items():
        if key not in cfg:
            cfg[key] = value
        elif isinstance(value, CN):
            _add_missing(cfg[key], value)


def _iso_config():
    cfg = CN()

    cfg.MODEL = CN()
    # Keep weights, and with them activations, in the channels-last layout; not timed on a GPU yet
    cfg.MODEL.CHANNELS_LAST = False
    # Training steps, from the second on, run the network (a detector's or classifier's backbone, a UNet)
    # compiled by torch.compile. Where that fails it runs as it is, after a warning
    cfg.MODEL.COMPILE = False

    cfg.MODEL.ISONET = CN()
    # 18, 34, 50, 101, 152; with STEM "cifar" also the narrow 6n+2 nets (20, 32, 44, 56, 110)
    cfg.MODEL.ISONET.DEPTH = 50
    # True: R-ISONet, x + s * f(x) in every block; False: ISONet, no skip connection at all
    cfg.MODEL.ISONET.RESIDUAL = True
    # "imagenet": 7x7 stride 2 and max-pooling (total stride 4); "cifar": 3x3 stride 1
    cfg.MODEL.ISONET.STEM = "imagenet"
    # False: Kaiming-normal convolutions instead of delta kernels, for comparison
    cfg.MODEL.ISONET.DELTA_INIT = True
    # Start of the SReLU thresholds b in max(x, b)
    cfg.MODEL.ISONET.SRELU_INIT = -1.0
    # Whether the thresholds are learned (one per channel) or stay at SRELU_INIT
    cfg.MODEL.ISONET.SRELU_LEARNABLE = True
    # "paper": delta kernels, no gains. "scaled": random isometries with gains that keep the mean square of
    # the values; residual scales start at 1 / sqrt(blocks) and learn at the full rate
    cfg.MODEL.ISONET.SIGNAL = "paper"
    # "delta"; "orthogonal", a random semi-orthogonal matrix where width or size changes; "random", isometries
    # over all taps. None: "delta" with SIGNAL "paper", "random" with "scaled"
    cfg.MODEL.ISONET.INIT = None
    # Start of the residual scales s; None: 0 with SIGNAL "paper", 1 / sqrt(blocks) with "scaled"
    cfg.MODEL.ISONET.SCALE_INIT = None
    # One residual scale for each input channel of a branch's last convolution, instead of one per block
    cfg.MODEL.ISONET.CHANNEL_SCALES = False
    # Every convolution learns a factor for each of its input channels: an isometry in a diagonal metric
    cfg.MODEL.ISONET.METRIC = False
    # With SIGNAL "scaled": gains also restore what max(z, SRELU_INIT) takes from a standard normal z
    cfg.MODEL.ISONET.SRELU_GAIN = False
    # Kernels of more than one tap start without their means, and Trainer's optimizer keeps these at 0.
    # None: with SIGNAL "scaled"
    cfg.MODEL.ISONET.CENTRED = None
    # The first convolution whitens the training images and is not trained. Trainer's WhiteningHook sets it
    # before the first step of a training from scratch. None: with SIGNAL "scaled"
    cfg.MODEL.ISONET.WHITEN = None
    # Which of stem, res2, res3, res4, res5, linear build_isonet_backbone returns (with an FPN,
    # MODEL.FPN.IN_FEATURES counts instead)
    cfg.MODEL.ISONET.OUT_FEATURES = ["res4"]
    # 2: dilated res5 at stride 16 (DC5); 1: the ordinary res5 at stride 32
    cfg.MODEL.ISONET.RES5_DILATION = 1
    # Which of res2 ... res5 keep only their input in training and compute the rest again in backward
    cfg.MODEL.ISONET.CHECKPOINT_STAGES = []

    cfg.MODEL.ISOMETRIZED = CN()
    # Name of the backbone of which build_isometrized_backbone makes an isometric one, with ISONET.SIGNAL
    cfg.MODEL.ISOMETRIZED.BACKBONE = "build_resnet_fpn_backbone"
    # Side of the images that its gains are measured with: about that of the training images
    cfg.MODEL.ISOMETRIZED.IMAGE_SIZE = 224

    cfg.MODEL.CLASSIFIER = CN()
    # Classes of ImageClassifier, and width of ISONet's own linear layer when OUT_FEATURES names it
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 1000
    # Dropout before either linear layer; the paper takes 0.1 for ISONet, 0.4 for R-ISONet
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.0
    # Cross entropy against (1 - this) for the true class plus this spread evenly over all classes
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.0

    cfg.MODEL.UNET = CN()
    # Channels of the first resolution; they double at each further one
    cfg.MODEL.UNET.BASE_CHANNELS = 64
    # Number of resolutions: 5 means 64 to 1024 channels with four poolings
    cfg.MODEL.UNET.DEPTH = 5
    # True: ISO-UNet (SReLU, near-isometric start); False: UNet (ReLU, Kaiming initialisation)
    cfg.MODEL.UNET.ISOMETRIC = True
    # Normalization after each 3x3 convolution: "" (none), "BN", "GN", ... as in Detectron2
    cfg.MODEL.UNET.NORM = ""
    # ISO-UNet's start: "orthogonal" or "random" as in ISONET.INIT, or "delta", the report's literal form,
    # which leaves most channels 0 for good. None: "orthogonal" with SIGNAL "paper", "random" with "scaled"
    cfg.MODEL.UNET.INIT = None
    # ISO-UNet's "paper": no gains. "scaled": gains that keep the mean square of the values at every width
    cfg.MODEL.UNET.SIGNAL = "paper"
    # Every convolution learns a factor for each of its input channels: an isometry in a diagonal metric
    cfg.MODEL.UNET.METRIC = False
    # With SIGNAL "scaled": gains also restore what max(z, SRELU_INIT) takes from a standard normal z
    cfg.MODEL.UNET.SRELU_GAIN = False
    # Channels of the image
    cfg.MODEL.UNET.IN_CHANNELS = 3
    # 1: a foreground probability by a sigmoid; more: softmax over the classes, 0 the background
    cfg.MODEL.UNET.NUM_CLASSES = 1
    # "transposed" convolutions of UP_KERNEL (2 or 6) in the decoder, or "nearest" upsampling and a 3x3 one
    cfg.MODEL.UNET.UP = "transposed"
    cfg.MODEL.UNET.UP_KERNEL = 2
    # Start of the SReLU thresholds b in max(x, b)
    cfg.MODEL.UNET.SRELU_INIT = -1.0
    # Whether the thresholds are learned (the report fixes them)
    cfg.MODEL.UNET.SRELU_LEARNABLE = False
    # "dice" (the report), "iou", "bce", "dice_bce"; with more than one class "dice", "iou", "cross_entropy"
    cfg.MODEL.UNET.LOSS = "dice"
    # In training every level of the decoder has logits and a loss of its own, of half the weight of the next
    # finer one; the weights sum to 1
    cfg.MODEL.UNET.DEEP_SUPERVISION = False
    # eps in numerator and denominator of Dice and IoU: without it an empty mask has no gradient
    cfg.MODEL.UNET.DICE_SMOOTH = 1.0
    # Dice and IoU loss of each "image" (the report), or of the images of a "batch" together, which does not
    # reward predicting nothing where few images have a foreground
    cfg.MODEL.UNET.DICE_OVER = "image"
    # Standardise channels by mean and std of each "image", or by PIXEL_MEAN and PIXEL_STD ("dataset")
    cfg.MODEL.UNET.STANDARDIZE = "image"

    cfg.ISO = CN()
    cfg.ISO.DELTA_INIT = CN()
    # Delta-initialise the modules that INCLUDE names, when no weights were loaded.
    # ISONet initialises itself; this is for other parts (a head, a stock ResNet).
    cfg.ISO.DELTA_INIT.ENABLED = False
    # Module names: dotted prefixes ("proposal_generator.rpn_head") or fnmatch patterns ("backbone.res*")
    cfg.ISO.DELTA_INIT.INCLUDE = ["backbone"]

    cfg.ISO.ORTHO = CN()
    # gamma, the weight of the orthogonality penalty; 0: off. "auto": from the schedule, with the same pull
    # towards an isometry for any length. None: 1e-4 with SIGNAL "paper", "auto" with "scaled"
    cfg.ISO.ORTHO.COEFF = None
    # "paper": the formula of the paper's code; "exact": ||AA* - I||^2 of the convolution operator;
    # "spectral": only by how much the largest singular values exceed BOUND;
    # "auto": "spectral" with SIGNAL "scaled", else "paper", or "exact" in a UNetSegmentor
    cfg.ISO.ORTHO.MODE = "auto"
    # Singular values up to this are free with MODE "spectral"
    cfg.ISO.ORTHO.BOUND = 1.3
    # Convolutions to penalise (names as in DELTA_INIT.INCLUDE); empty: those of every ISONet and UNet except
    # UNet's output and, if they have no gain, 7x7 kernels and 3-channel inputs; in a model without either,
    # those of `backbone` except FPN's
    cfg.ISO.ORTHO.INCLUDE = []
    # Convolutions to leave out, same form
    cfg.ISO.ORTHO.EXCLUDE = []
    # Penalise every n-th step, with the coefficient times n
    cfg.ISO.ORTHO.PERIOD = 1
    # Share of each kernel's frequencies that a step uses, drawn at random; 1 is exact
    cfg.ISO.ORTHO.FRACTION = 1.0
    # Of the matrix products of the penalty's gradient on a GPU: "float32", or "tf32", rounded to 10 bits. The
    # values are float32 in both cases. On a CPU and with MODE "spectral" it has no effect
    cfg.ISO.ORTHO.PRECISION = "float32"
    # Write each layer's penalty to metrics.json and TensorBoard every so often, in steps; 0: never
    cfg.ISO.ORTHO.LOG_PERIOD = 100

    cfg.ISO.ANALYSIS = CN()
    # Log singular values, thresholds, scales, signal and gradient by depth every so often, in steps; 0: never
    cfg.ISO.ANALYSIS.PERIOD = 0

    # Trackers that get all that metrics.json gets: "wandb" (Weights & Biases), "mlflow"
    cfg.ISO.WRITERS = []

    cfg.SOLVER = CN()
    # Weight decay of the SReLU thresholds
    cfg.SOLVER.SRELU_WEIGHT_DECAY = 0.0
    # Learning rate of the residual scales, as a multiple of BASE_LR; None: 0.1 with SIGNAL "paper", 1 with
    # "scaled"
    cfg.SOLVER.SCALE_LR_FACTOR = None
    # Length of the training in passes over DATASETS.TRAIN. Above 0 it replaces MAX_ITER, and the next two and
    # TEST.EVAL_EPOCHS replace STEPS, WARMUP_ITERS and TEST.EVAL_PERIOD
    cfg.SOLVER.EPOCHS = 0
    # Epochs at which the learning rate falls
    cfg.SOLVER.EPOCH_STEPS = ()
    # Epochs of warm-up
    cfg.SOLVER.WARMUP_EPOCHS = 0

    # Save so many minutes after the last checkpoint, besides every CHECKPOINT_PERIOD steps; 0: only by steps
    cfg.SOLVER.CHECKPOINT_MINUTES = 10.0
    # How many checkpoints of CHECKPOINT_PERIOD stay, the newest; 0: all
    cfg.SOLVER.CHECKPOINTS_KEPT = 0
    # A step computes its IMS_PER_BATCH images in so many equal parts, one after the other: less memory, the
    # same gradient where nothing is normalized over images
    cfg.SOLVER.ACCUMULATE = 1
    # Decay of a moving average of the weights, such as 0.999; evaluations and checkpoints' models are of the
    # average; 0: none
    cfg.SOLVER.EMA = 0.0
    # A total loss above this stops the training like one that is not finite; 0: no bound
    cfg.SOLVER.MAX_LOSS = 0.0

    # CLIP_TYPE of Detectron2 "norm", "value" (each parameter by itself), and here also "full_model"
    cfg.SOLVER.CLIP_GRADIENTS = CN()
    # lambda of adaptive clipping (NFNet): each unit's gradient is at most this times the unit's norm; 0: off
    cfg.SOLVER.CLIP_GRADIENTS.ADAPTIVE = 0.0

    cfg.SOLVER.AMP = CN()
    # Mixed precision with SOLVER.AMP.ENABLED: "fp16" (CUDA only, scaled gradients) or "bf16" (CUDA and CPU)
    cfg.SOLVER.AMP.PRECISION = "fp16"

    cfg.DATASETS = CN()
    # Your data sets in COCO's format, to be registered: [name, json file, image folder] each
    cfg.DATASETS.COCO_FORMAT = []
    # Your data sets with one folder of images per class, to be registered: [name, folder] each
    cfg.DATASETS.IMAGE_FOLDERS = []

    # How lgg_train and lgg_val divide the slices: by "patient"; by "image" (the report's 85/15, one patient's
    # slices on both sides); as "fold": LGG_FOLDS parts by patient, of which lgg_val is LGG_FOLD (from 0);
    # or to "tune": the training patients of "patient" alone, divided once more. Anything but "patient"
    # stands for other names in TRAIN and TEST, such as lgg_image_train, which can be given there as well
    cfg.DATASETS.LGG_SPLIT = "patient"
    cfg.DATASETS.LGG_FOLD = 0
    cfg.DATASETS.LGG_FOLDS = 5

    # How often a slice with foreground comes where another comes once, in the training of a set of slices. An
    # epoch stays as many images as the sets have
    cfg.DATASETS.FOREGROUND_REPEATS = 1

    cfg.INPUT = CN()
    # "albumentations": the pipelines below; "detectron2": its own mapper with INPUT.MIN_SIZE_* etc.
    cfg.INPUT.MAPPER = "albumentations"
    cfg.INPUT.ALBUMENTATIONS = CN()
    # TRAIN and TEST: lists of [transform name in Albumentations, keyword arguments], applied in order
    cfg.INPUT.ALBUMENTATIONS.TRAIN = [
        ["Resize", {"height": 512, "width": 512}],
        ["HorizontalFlip", {"p": 0.5}],
    ]
    cfg.INPUT.ALBUMENTATIONS.TEST = [["Resize", {"height": 512, "width": 512}]]
    # In training, replace an unreadable image by another one instead of stopping
    cfg.INPUT.SKIP_BROKEN = False
    # Keep data sets that consist of arrays (CIFAR, shapes_cls; lgg and phantom, if ALBUMENTATIONS.TRAIN is
    # empty) on MODEL.DEVICE and make whole batches there; False: one image at a time through MAPPER
    cfg.INPUT.IN_MEMORY = True
    cfg.INPUT.CLASSIFICATION = CN()
    # Batches in memory: mirror images at random in training
    cfg.INPUT.CLASSIFICATION.FLIP = True
    # Batches in memory: pad by this many black pixels, then crop at random to the old size (CIFAR: 4); 0: off
    cfg.INPUT.CLASSIFICATION.CROP_PADDING = 0

    cfg.TEST = CN()
    # Images per batch and process in the evaluation of classifiers and UNets; detectors take one at a time
    cfg.TEST.BATCH_SIZE = 512
    # Number of test images that each evaluation draws with their predictions; 0: none
    cfg.TEST.VISUALIZE = 8
    # With SOLVER.EPOCHS: epochs between two evaluations; 0: only at the end
    cfg.TEST.EVAL_EPOCHS = 0
    # [metric, "max" or "min"], such as ["bbox/AP", "max"]: keep the best of the evaluations as model_best.pth
    cfg.TEST.BEST = []
    # Stop after so many evaluations in a row without a better metric of TEST.BEST; 0: never
    cfg.TEST.PATIENCE = 0
    # UNets: mean of the probabilities of an image and its mirror images along "height", "width", or both axes
    cfg.TEST.MIRROR_AXES = []
    cfg.TEST.SEGMENTATION = CN()
    # A pixel counts as foreground from this probability on
    cfg.TEST.SEGMENTATION.THRESHOLD = 0.5
    # Measure masks after keeping the largest connected component of each patient's prediction
    cfg.TEST.SEGMENTATION.LARGEST_COMPONENT = False
    # (slice, row, column), distances in mm: measures the 95 % Hausdorff distance of each patient, too. ():
    # does not. Needs pip install iso_d2[medical]
    cfg.TEST.SEGMENTATION.SPACING = ()
    # eps of the report's soft Dice loss and IoU
    cfg.TEST.SEGMENTATION.SMOOTH = 1.0
    return cfg
