"""Write a trained model to a file for other programs: the command `iso-d2 export`, --help says more."""

from iso_d2.commands.export import main

if __name__ == "__main__":
    main()
