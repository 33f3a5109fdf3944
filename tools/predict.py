"""Run a trained model on images: the command `iso-d2 predict`, --help says more."""

from iso_d2.commands.predict import main

if __name__ == "__main__":
    main()
