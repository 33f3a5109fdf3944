"""Data sets in Detectron2's catalogs."""

from detectron2.data import DatasetCatalog, MetadataCatalog


def register(name, load, evaluator_type="coco", **metadata):
    """Register a data set, in place of an earlier one of that name.

    Args:
        name (str): name in Detectron2's catalogs.
        load (callable): returns the list of dataset dicts.
        evaluator_type (str): which evaluator belongs to it.
        metadata: more fields of its metadata.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(evaluator_type=evaluator_type, **metadata)
