"""Images pixel by pixel: idx files, Hugging Face folders, digits, resizing, splits, refusals."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rimlit.data import SequentialImages
from rimlit.data.image_sources import read_digits, read_idx, read_idx_folder
from rimlit.data.images import binary_images
from rimlit.errors import CheckpointError, ConfigError, DataError
from rimlit.metrics import IGNORED

NAMES = {
    "train-images-idx3-ubyte": (20, 28, 28),
    "train-labels-idx1-ubyte": (20,),
    "t10k-images-idx3-ubyte": (8, 28, 28),
    "t10k-labels-idx1-ubyte": (8,),
}


def idx_bytes(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """MNIST's four files, small; one of them as it is, the others compressed."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, shape in NAMES.items():
        numbers = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
        array = (numbers * 37 % 256 if len(shape) == 3 else numbers % 4).astype(np.uint8)
        if name.startswith("t10k-images"):
            (folder / name).write_bytes(idx_bytes(array))
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array), mtime=0))
    return folder


def make_images(folder: Path | None = None, **arguments: Any) -> SequentialImages:
    path = None if folder is None else str(folder)
    return SequentialImages(**{"path": path, "batch_size": 4, "seed": 1, **arguments})


# Reading


def test_idx_files_are_read_compressed_or_not(mnist: Path) -> None:
    read = read_idx_folder(mnist)
    for split, number in (("train", 20), ("test", 8)):
        images, labels = read[split]
        assert images.shape == (number, 28, 28)
        assert labels.tolist() == [index % 4 for index in range(number)]
        assert images[1, 0, :3].tolist() == [(28 * 28 + index) * 37 % 256 for index in range(3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"begins with 00 00 08 03; it begins with nothing\."),
        (b"\x00\x00\x08\x01" + b"\0" * 40, r"begins with 00 00 08 03; it begins with 00 00 08 01\."),
        (b"\x00\x00\x0d\x03" + b"\0" * 40, r"unsigned bytes .* it begins with 00 00 0d 03\."),
        (b"GIF89a" + b"\0" * 40, r"it begins with 47 49 46 38\."),
        (b"\x00\x00\x08\x03\x00\x00", r"it begins with 00 00 08 03\."),
        (idx_bytes(np.ones((2, 3, 3), np.uint8))[:-1], r"it holds 2 × 3 × 3 bytes.*; it holds 17\."),
        (idx_bytes(np.ones((2, 3, 3), np.uint8)) + b"1", r"it holds 2 × 3 × 3 bytes.*; it holds 19\."),
        (
            idx_bytes(np.ones((0, 3, 3), np.uint8)),
            r"0 × 3 × 3 bytes, at least one in each dimension; it holds 0\.",
        ),
        (gzip.compress(b"\0" * 900, mtime=0)[:-9], r"it begins with 1f 8b 08 00\."),
    ],
)
def test_a_malformed_idx_file_is_refused_with_what_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(DataError, match=rf"images .*{message}"):
        read_idx(tmp_path / "images", 3)


WHOLE = gzip.compress(idx_bytes(np.arange(900, dtype=np.uint16).astype(np.uint8).reshape(9, 10, 10)), mtime=0)


@pytest.mark.parametrize("content", [WHOLE[:-9], b"not gzip at all", WHOLE[:40] + b"\xff" * 9 + WHOLE[49:]])
def test_a_damaged_gz_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"images\.gz cannot be read: "):
        read_idx(tmp_path / "images.gz", 3)


def test_a_folder_without_the_files_is_refused_with_their_names(mnist: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere' must be a folder with train-images-idx3-ubyte, train-labels"):
        make_images(mnist / "nowhere").setup("fit")
    (mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        DataError, match=r"has no t10k-labels-idx1-ubyte and no t10k-labels-idx1-ubyte\.gz; it must"
    ):
        make_images(mnist).setup("fit")


def test_labels_of_another_number_are_refused_with_both_numbers(mnist: Path) -> None:
    (mnist / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(7, np.uint8)), mtime=0))
    with pytest.raises(DataError, match=r"labels-idx1-ubyte\.gz has 7 labels for 8 images"):
        make_images(mnist).setup("fit")


def test_a_label_that_only_the_test_has_is_refused_with_its_place(mnist: Path) -> None:
    labels = np.array([0, 1, 2, 9, 0, 0, 0, 0], np.uint8)
    (mnist / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels), mtime=0))
    with pytest.raises(DataError, match=r"Test image 3 of .*mnist has the label 9, which no training image has\."):
        make_images(mnist).setup("fit")


def test_the_bundled_digits_need_no_file_and_the_last_360_are_the_test() -> None:
    digits = read_digits()
    assert digits["train"].images.shape == (1437, 8, 8)
    assert digits["test"].images.shape == (360, 8, 8)
    assert (digits["train"].images.min(), digits["train"].images.max()) == (0, 255)
    data = make_images(image_size=8, test_sizes=[8, 14])
    assert data.output_size == 10
    assert [len(data.datasets(split)[""]) for split in ("train", "val")] == [1150, 287]  # type: ignore[arg-type]
    assert len(data.datasets("test")["size_14"]) == 360


def write_image(path: Path, array: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_a_local_hugging_face_folder_of_images_is_read(tmp_path: Path, hugging_face: Any) -> None:
    for split, number in (("train", 6), ("test", 2)):
        for index in range(number):
            image = np.full((4, 4), 40 * index, np.uint8)
            write_image(tmp_path / f"pictures/{split}/{'ab'[index % 2]}/{index}.png", image)
    data = make_images(dataset=str(tmp_path / "pictures"), image_size=4, test_sizes=[4], val_fraction=0.5)
    assert data.output_size == 2
    read = data.images("test")
    assert read.images[:, 0, 0].tolist() == [0, 40]
    assert read.labels.tolist() == [0, 1]
    write_image(tmp_path / "pictures/train/b/9.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError, match=r"of train is 4 × 5, the first one 4 × 4; all must have one size\."):
        make_images(dataset=str(tmp_path / "pictures")).setup("fit")


def test_a_hugging_face_dataset_of_something_else_is_refused_with_what_it_has(
    tmp_path: Path, hugging_face: Any
) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/train.csv").write_text("first,second\n1,2\n")
    with pytest.raises(DataError, match=r"rows' must have train and test; it has train\."):
        make_images(dataset=str(tmp_path / "rows")).setup("fit")
    (tmp_path / "rows/test.csv").write_text("first,second\n1,2\n")
    with pytest.raises(DataError, match=r"must have the columns image and label; it has first, second\."):
        make_images(dataset=str(tmp_path / "rows")).setup("fit")
    for split in ("train", "test"):
        (tmp_path / f"rows/{split}.csv").write_text("image,label\n1,2\n")
    with pytest.raises(DataError, match=r"the column image must hold images; number 0 of train is a int\."):
        make_images(dataset=str(tmp_path / "rows")).setup("fit")
    with pytest.raises(DataError, match=r"nowhere' \(name='small'\) cannot be loaded: "):
        make_images(dataset=str(tmp_path / "nowhere"), dataset_name="small").setup("fit")


# Sequences


def test_resizing_takes_the_pixel_whose_centre_is_nearest() -> None:
    image = np.zeros((1, 4, 4), np.uint8)
    image[0, 1, 3] = 255
    half = binary_images(image, 2)  # centres of half an image lie between pixels 0 and 1: the later one is taken
    assert half[0].tolist() == [[False, True], [False, False]]
    double = binary_images(image, 8)
    assert double[0].nonzero().tolist() == [[2, 6], [2, 7], [3, 6], [3, 7]]
    assert torch.equal(binary_images(image, 4)[0], torch.from_numpy(image[0] > 0))


def test_a_pixel_is_lit_above_the_threshold() -> None:
    image = np.array([[[0, 127], [128, 255]]], np.uint8)
    assert binary_images(image, 2).flatten().tolist() == [False, False, True, True]
    assert binary_images(image, 2, threshold=0.9).flatten().tolist() == [False, False, False, True]


def test_a_sequence_is_the_image_row_by_row_and_longer_at_a_greater_size(mnist: Path) -> None:
    data = make_images(mnist, test_sizes=[14, 16])
    assert (data.vocabulary_size, data.output_size) == (2, 4)
    pixels, label = data.datasets("test")["size_16"][5]
    assert pixels.dtype == torch.long
    assert torch.equal(pixels.view(16, 16).bool(), binary_images(data.images("test").images[5:6], 16)[0])
    assert label.item() == 1
    batch = next(iter(data.test_dataloader()[0]))
    assert batch.inputs.shape == (4, 14 * 14)
    assert batch.lengths.tolist() == [196] * 4
    assert torch.equal(batch.inputs[1], data.datasets("test")["size_14"][1][0])


def test_validation_is_drawn_from_training_by_the_seed_and_the_test_stays(mnist: Path) -> None:
    def firsts(data: SequentialImages, split: Any) -> set[int]:
        return {int(image[0, 0]) for image in data.images(split).images}

    one, same, other = make_images(mnist), make_images(mnist), make_images(mnist, seed=2)
    assert (len(one.images("train").labels), len(one.images("val").labels)) == (16, 4)
    assert firsts(one, "train") | firsts(one, "val") == {index * 784 * 37 % 256 for index in range(20)}
    assert firsts(one, "val") == firsts(same, "val") != firsts(other, "val")
    assert one.images("test").labels.tolist() == other.images("test").labels.tolist()
    few = make_images(mnist, train_size=5)
    assert (len(few.images("train").labels), firsts(few, "val")) == (5, firsts(one, "val"))


def test_floors_are_those_of_the_class_frequencies(mnist: Path) -> None:
    floors = make_images(mnist).floors()
    assert floors["accuracy"] == 0.25
    assert floors["cross_entropy"] == pytest.approx(np.log(4), rel=0.05)


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1; got image_size=0."),
        ({"test_sizes": [14, -1]}, r"test_sizes\[1\] must be at least 1; got test_sizes\[1\]=-1."),
        ({"test_sizes": []}, "test_sizes must name at least one size"),
        ({"train_size": 0}, "train_size must be at least 1; got train_size=0."),
        ({"threshold": 1.0}, "threshold must be above 0 and below 1; got threshold=1.0."),
        ({"val_fraction": 0.0}, "val_fraction must be above 0 and below 1; got val_fraction=0.0."),
        ({"path": "a", "dataset": "b"}, "Give path or dataset, not both; got path='a', dataset='b'."),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SequentialImages(**arguments)


def test_a_fraction_that_leaves_no_image_is_refused_with_both_numbers(mnist: Path) -> None:
    with pytest.raises(DataError, match=r"val_fraction=0\.01 of the 20 training images of .*mnist is 0; training"):
        make_images(mnist, val_fraction=0.01).setup("fit")


# New images, and doubtful ones


def test_new_images_are_predicted_at_the_trained_size_by_their_names_without_the_training_files(
    mnist: Path, tmp_path: Path
) -> None:
    state = make_images(mnist).state_dict()
    assert state == {"num_classes": 4}
    pictures = tmp_path / "new"
    for name, size in (("b.png", 28), ("a.JPG", 40), ("c.gif", 9)):
        write_image(pictures / name, np.full((size, size), 255, np.uint8))
    (pictures / "notes.txt").write_text("no picture")
    (tmp_path / "idx").write_bytes(idx_bytes(np.full((3, 5, 6), 255, np.uint8)))
    for path, names in ((pictures, ["a.JPG", "b.png", "c.gif"]), (tmp_path / "idx", [0, 1, 2])):
        data = make_images(tmp_path / "gone", predict_path=str(path), image_size=6)
        data.load_state_dict(state)
        data.setup("predict")
        assert (data.output_size, data.group_names("predict")) == (4, [""])
        (batch,) = data.predict_dataloader()[0]
        assert batch.inputs.tolist() == [[1] * 36] * 3
        assert batch.targets.tolist() == [IGNORED] * 3
        assert [data.sample_name("predict", "", index) for index in range(3)] == names


@pytest.mark.parametrize("state", [{}, {"num_classes": "4"}, {"num_classes": 0}, 3])
def test_the_state_of_something_else_is_refused(state: Any) -> None:
    with pytest.raises(CheckpointError, match="the number of classes is missing"):
        make_images().load_state_dict(state)


def test_a_test_of_training_images_or_a_single_class_is_reported(
    mnist: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = read_idx_folder(mnist)["train"].images
    (mnist / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(255 - images[:8]))
    make_images(mnist, strict=True).setup("fit")
    assert not caplog.records
    (mnist / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images[:8]))
    make_images(mnist, val_fraction=0.05).setup("fit")
    with pytest.raises(DataError, match=r"Every test image of .*mnist is also in training"):
        make_images(mnist, val_fraction=0.05, strict=True, seed=3).setup("fit")
    assert "Every test image of" in caplog.text
