"""Convert checkpoints of the ISONet authors: the command `iso-d2 convert`, --help says more."""

from iso_d2.commands.convert import main

if __name__ == "__main__":
    main()
