"""Make a subset of COCO: the command `iso-d2 data coco`, --help says more."""

from iso_d2.commands.data_coco import main

if __name__ == "__main__":
    main()
