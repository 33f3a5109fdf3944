import logging

import pytest


@pytest.fixture
def log(caplog):
    """What iso_d2 and fvcore log; Detectron2's setup_logger takes them off the root logger."""
    loggers = [logging.getLogger(name) for name in ("iso_d2", "fvcore")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger="iso_d2"):
        yield caplog
    for logger in loggers:
        logger.removeHandler(caplog.handler)
