"""Drawn data sets, made on first use, that need no download.

scene_sets     shapes_*: street scenes, drawn by scene_drawing, for detection and segmentation
shape_images   shapes_cls_*: images of ten shapes, for classification
phantoms       phantom_*: MRI slices of heads, for segmentation
"""
