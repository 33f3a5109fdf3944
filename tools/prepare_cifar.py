"""Download and unpack CIFAR-10 or CIFAR-100: the command `iso-d2 data cifar`, --help says more."""

from iso_d2.commands.data_cifar import main

if __name__ == "__main__":
    main()
