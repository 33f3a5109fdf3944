"""NIfTI volumes as slices, and masks back; the volumes are made and read with nibabel."""

import itertools
import logging
import sys

import numpy as np
import pytest

from iso_d2.data import volumes
from iso_d2.data.volumes import read_volume
from iso_d2.files import BrokenImageError

nibabel = pytest.importorskip("nibabel")

# Voxels to the left, to the back and upwards; and how many mm apart
SIZE, APART = (4, 5, 3), (1.0, 1.25, 6.0)
# What leads against R, A or S of an affine
AXES = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}
ORIENTATIONS = [
    "".join(letters)
    for order in itertools.permutations(("LR", "PA", "SI"))
    for letters in itertools.product(*order)
]


def head():
    """int16 of 1 to 60, each once, by [left, back, up]: with these the percentiles are 1.295 and 59.705."""
    return (1 + np.arange(60)).reshape(SIZE).astype(np.int16)


def lying(orientation, array=None):
    """An array by [left, back, up] (None: head()), stored along other axes, with their affine."""
    stored, affine = head() if array is None else array, np.eye(4)
    axes = [AXES[letter] for letter in orientation]
    for number, (letter, (axis, sign)) in enumerate(zip(orientation, axes, strict=True)):
        if letter in "RAI":  # against left, back and up
            stored = np.flip(stored, axis)
        affine[:3, number] = 0
        affine[axis, number] = sign * APART[axis]
    affine[:3, 3] = -10.5, 20.25, 3
    order = [axis for axis, _ in axes] + list(range(3, stored.ndim))
    return nibabel.Nifti1Image(stored.transpose(order), affine)


def saved(image, path, **header):
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def greys(values):
    """The rule of one channel by itself, for values of 1 to 60."""
    return np.round((np.clip(values, 1.295, 59.705) - 1.295) / 58.41 * 255)


def test_all_orientations_give_the_same_slices_and_masks_back(tmp_path):
    assert len(set(ORIENTATIONS)) == 48
    mask = np.zeros(SIZE, np.uint8)
    mask[3, 1:3, 2] = 1, 2  # leftmost, in the second and third row from the front, uppermost
    for orientation in ORIENTATIONS:
        volume = read_volume(saved(lying(orientation), tmp_path / "a.nii"))
        assert volume.slices.shape == (3, 3, 5, 4) and volume.slices.dtype == np.uint8
        # value 1 + 15 left + 3 back + up
        up, channel, row, column = np.ogrid[:3, :3, :5, :4]
        expected = greys(1.0 + 15 * column + 3 * row + up) + 0 * channel
        np.testing.assert_array_equal(volume.slices, expected, orientation)
        labels = np.zeros((3, 5, 4), np.uint8)
        labels[2, 1, 3], labels[2, 2, 3] = 1, 2
        volume.write_mask(labels, tmp_path / "m.nii.gz")
        written = nibabel.load(tmp_path / "m.nii.gz")
        np.testing.assert_array_equal(written.dataobj, lying(orientation, mask).dataobj, orientation)
        assert nibabel.aff2axcodes(written.affine) == tuple(orientation)


def test_the_mask_has_the_header_of_an_oblique_volume(tmp_path, log):
    turned = nibabel.eulerangles.euler2mat(z=0.1) @ np.diag([-1, 2, 6])
    affine = nibabel.affines.from_matvec(turned, [1 / 3, 2, 3])
    image = nibabel.Nifti1Image(head().astype(">f4"), affine, nibabel.Nifti1Header(endianness=">"))
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=2)
    image.header.set_xyzt_units("mm", "sec")
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"of the scanner"))
    file = saved(image, tmp_path / "a.nii.gz", scl_slope=2, scl_inter=1, cal_max=50, descrip=b"FLAIR")
    with log.at_level(logging.INFO):
        volume = read_volume(file)
    assert "3 axial slices of 5 x 4, spacing 6 x 2 x 1 (slices, rows, columns; unit mm)" in log.text
    assert "oblique by up to 5.7 degrees" in log.text  # 0.1 rad
    assert "pixels of its axial slices are 2 x 1, far from square" in log.text
    volume.write_mask(np.ones((3, 5, 4), np.uint8), tmp_path / "m.nii.gz")
    (given, written) = nibabel.load(file), nibabel.load(tmp_path / "m.nii.gz")
    assert written.get_data_dtype() == np.uint8 and (np.asarray(written.dataobj) == 1).all()
    assert written.affine.tobytes() == given.affine.tobytes()
    changed = {"datatype", "bitpix", "scl_slope", "scl_inter", "cal_max", "vox_offset"}
    for key in set(given.header.keys()) - changed:
        assert given.header[key].tobytes() == written.header[key].tobytes(), key
    assert written.header["cal_max"] == 0 and written.header.extensions == given.header.extensions


def test_three_volumes_are_three_channels_each_scaled_by_itself(tmp_path, log):
    first = head().astype(np.float32)
    channels = np.stack([first, 1000 * first - 7, 61 - first], axis=-1)
    channels[0, 0, 0, 1] = 0  # background has no part in the percentiles: of 59 values, -7 + 1000 (2 to 60)
    image = lying("LPS", channels)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    volume = read_volume(saved(image, tmp_path / "a.nii.gz"))
    assert "does not say how it lies" in log.text
    values = first.transpose(2, 1, 0)  # as left, front and up: rows the other way round
    values = values[:, ::-1]
    np.testing.assert_array_equal(volume.slices[:, 0], greys(values))
    np.testing.assert_array_equal(volume.slices[:, 2], greys(61 - values))
    middle = np.where(values == 1, -9e9, values)
    middle = np.round((np.clip(middle, 2.29, 59.71) - 2.29) / 57.42 * 255)
    np.testing.assert_array_equal(volume.slices[:, 1], middle)
    volume.write_mask(np.zeros((3, 5, 4), np.uint8), tmp_path / "m.nii.gz")
    assert nibabel.load(tmp_path / "m.nii.gz").shape == SIZE


def image_of(shape, dtype=np.float32, **values):
    array = np.zeros(shape, dtype)
    array.flat[: array.size // 2] = np.arange(array.size // 2)
    for index, value in enumerate(values.values()):
        array.flat[index] = value
    return nibabel.Nifti1Image(array, np.eye(4))


@pytest.mark.parametrize(
    "image, message",
    [
        (image_of((8, 8)), r"its shape is \(8, 8\), not X x Y x Z"),
        (image_of((8, 8, 4, 2)), r"its shape is \(8, 8, 4, 2\), not .* x 3 for three channels"),
        (image_of((8, 8, 4, 1, 3)), r"its shape is \(8, 8, 4, 1, 3\)"),
        (image_of((8, 8, 4), np.complex64), "type complex64, not real"),
        (image_of((8, 8, 4), a=np.nan, b=np.inf), "2 of its voxels are NaN or infinite"),
        (nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), "that are not 0 are 1: that is no"),
        (nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), "that are not 0 are 0: that is no"),
    ],
)
def test_other_volumes_are_refused_by_name(tmp_path, image, message):
    file = saved(image, tmp_path / "odd.nii.gz")
    with pytest.raises(BrokenImageError, match=rf"cannot read the volume .*odd\.nii\.gz \(.*{message}"):
        read_volume(file)


def over(whole, start, new):
    """A file's bytes with others in some place of the header."""
    return whole[:start] + new + whole[start + len(new) :]


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("empty.nii", lambda whole: b"", "mpty"),
        ("empty.nii.gz", lambda whole: b"", "mpty"),
        ("header.nii", lambda whole: whole[:200], ""),
        ("short.nii", lambda whole: whole[:-1], ""),
        ("short.nii.gz", lambda whole: whole[: len(whole) // 2], ""),
        ("text.nii.gz", lambda whole: b"no volume", ""),
        ("cut.nii.gz", lambda whole: whole[:-1], "ended before"),
        ("flipped.nii.gz", lambda whole: over(whole, -20, bytes([whole[-20] ^ 1])), "CRC check failed"),
        ("ndim.nii", lambda whole: over(whole, 40, b"\x09\x00"), ""),
        ("negative.nii", lambda whole: over(whole, 42, b"\xff\xff"), r"shape is \(-1, "),
        (
            "huge.nii",
            lambda whole: over(whole, 42, b"\xff\x7f" * 3),
            r"32767\), and 268435456 voxels",
        ),
        ("datatype.nii", lambda whole: over(whole, 70, b"\x03\x00"), "code 3 not"),
        ("singular.nii", lambda whole: over(whole, 312, bytes(16)), "affine is singular"),
        ("infinite.nii", lambda whole: over(whole, 312, b"\x00\x00\xc0\x7f" * 4), "affine is not finite"),
        ("magic.nii", lambda whole: over(whole, 344, b"nope"), "Cannot work out file type"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, name, change, message):
    file = saved(image_of((32, 32, 16)), tmp_path / name)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(BrokenImageError, match=rf"cannot read the volume .*{name} \(.*{message}"):
        read_volume(file)


def test_the_size_is_bounded_before_voxels_are_read(tmp_path, monkeypatch):
    file = saved(image_of((8, 8, 4, 3)), tmp_path / "a.nii")
    monkeypatch.setattr(volumes, "MAX_VOXELS", 8 * 8 * 4 * 3)
    read_volume(file)
    file.write_bytes(file.read_bytes()[:352])  # the header alone
    monkeypatch.setattr(volumes, "MAX_VOXELS", 8 * 8 * 4 * 3 - 1)
    with pytest.raises(BrokenImageError, match=r"shape is \(8, 8, 4, 3\), and 767 voxels are the most"):
        read_volume(file)


def test_missing_things(tmp_path, monkeypatch):
    with pytest.raises(BrokenImageError, match=r"absent\.nii .*there is no such file"):
        read_volume(tmp_path / "absent.nii")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ImportError, match=r"volumes need nibabel .*pip install iso_d2\[medical\]"):
        read_volume(tmp_path / "a.nii")
