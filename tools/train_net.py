"""Train or evaluate a model: the command `iso-d2 train`, --help says more."""

from iso_d2.commands.train import main

if __name__ == "__main__":
    main()
