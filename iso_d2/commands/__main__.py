"""``python -m iso_d2.commands`` is the command ``iso-d2``, for launchers such as torchrun."""

from . import main

main()
