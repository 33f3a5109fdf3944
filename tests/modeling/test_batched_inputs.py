import pytest
import torch
from pretended_gpu import pretended_gpu

from iso_d2.modeling.batched_inputs import as_batch, check_label_range

IMAGES, LABELS = torch.zeros(2, 3, 4, 5), torch.tensor([1, 0])
PIXEL_LABELS = torch.ones(2, 4, 5, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        ({"images": IMAGES, "labels": LABELS}, LABELS),
        ([{"image": IMAGES[0], "y": 1}, {"image": IMAGES[1], "y": 0}], LABELS),
        ([{"image": i, "y": y} for i, y in zip(IMAGES, PIXEL_LABELS, strict=True)], PIXEL_LABELS),
    ],
)
def test_both_forms_give_the_same_tensors(inputs, labels):
    images, found = as_batch(inputs, "y", "Model", "good", training=True)
    assert torch.equal(images, IMAGES)
    assert torch.equal(found, labels) and found.dtype == labels.dtype
    assert as_batch(inputs, "y", "Model", "good", training=False)[1] is None


def test_labels_out_of_range():
    labels = torch.tensor([0, 3])
    check_label_range(labels, 4, "0 to 3")
    with pytest.raises(ValueError, match=r"^Labels must be 0 to 2, got 3: mend them$"):
        check_label_range(labels, 3, "0 to 2", ": mend them")


@pytest.mark.parametrize("wrong", [-1, 3])
def test_labels_on_a_gpu_are_checked_without_waiting(wrong):
    with pretended_gpu() as waits:
        labels = torch.tensor([[0, 2, wrong]], device="cuda")
        waits.clear()
        check_label_range(labels[:, :2], 3, "0 to 2")
        with pytest.raises(RuntimeError, match=r"^Labels must be 0 to 2: mend them$"):
            check_label_range(labels, 3, "0 to 2", ": mend them")
        assert not waits
