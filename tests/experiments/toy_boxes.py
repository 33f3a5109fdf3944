"""A data set of boxes and detections on it, as files."""

import json


def write_boxes(folder, images, objects, detections):
    """tuple[Path, Path]: annotations and results. `images` are ids, boxes are x, y, width, height.

    `objects` are (image, class, box) or (image, class, box, iscrowd), `detections` (image, class, box,
    score).
    """
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3]}
        | {"iscrowd": int(any(crowd))}
        for number, (image, category, box, *crowd) in enumerate(objects, 1)
    ]
    content = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 100} for i in images],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class{number}"} for number in (1, 2, 3)],
    }
    names = "image_id", "category_id", "bbox", "score"
    found = [dict(zip(names, detection, strict=True)) for detection in detections]
    paths = folder / "annotations.json", folder / "results.json"
    for path, one in zip(paths, (content, found), strict=True):
        path.write_text(json.dumps(one))
    for image in images:
        (folder / f"{image}.png").touch()
    return paths
