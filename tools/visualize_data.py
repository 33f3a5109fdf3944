"""Draw what the mapper feeds the model: the command `iso-d2 data show`, --help says more."""

from iso_d2.commands.data_show import main

if __name__ == "__main__":
    main()
