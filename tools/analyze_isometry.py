"""Measure how far networks are from an isometry: the command `iso-d2 analyze`, --help says more."""

from iso_d2.commands.analyze import main

if __name__ == "__main__":
    main()
