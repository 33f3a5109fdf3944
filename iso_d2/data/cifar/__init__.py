"""CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009).

    cifar10_train, cifar100_train    50,000 images of 32x32 pixels
    cifar10_test, cifar100_test      10,000
    cifar10_train45k, cifar10_val5k (and cifar100_...)
                                     the first 45,000 training images and the other 5,000, to choose
                                     settings by

They lie in the data set root as the official archives unpack: the binary version (``cifar-10-batches-bin``,
``cifar-100-binary``) or, where there is none, the python version (``cifar-10-batches-py``,
``cifar-100-python``). CIFAR-100 is labelled by its 100 fine classes.
"""

import functools

from ..arrays import register_labelled_images
from .reading import CIFAR10, CIFAR100, TUNING_SPLITS, load_cifar

__all__ = ["CIFAR10", "CIFAR100", "load_cifar"]

for _dataset in (CIFAR10, CIFAR100):
    for _split in ("train", "test", *TUNING_SPLITS):
        register_labelled_images(
            f"{_dataset.name}_{_split}", functools.partial(load_cifar, _dataset, _split), _dataset.classes
        )
