"""Streams: splits, orders, remainders, hashes, images from folders and zips."""

import io
import zipfile

import numpy as np
import pytest
import torch
from conftest import blobs
from PIL import Image

from cl.errors import BadValue, DataError
from cl.stream import Normalise, class_incremental, class_order, split_sizes
from streams.image_folder import image_folder
from streams.split_digits import split_digits


@pytest.mark.parametrize(
    ("n", "settings", "sizes"),
    [
        (10, {"n_experiences": 5}, [2, 2, 2, 2, 2]),
        (10, {"n_experiences": 3}, [4, 3, 3]),
        (10, {"n_experiences": 1}, [10]),
        (10, {"base": 5, "increment": 1}, [5, 1, 1, 1, 1, 1]),
        (10, {"base": 4, "increment": 4}, [4, 4, 2]),
        (10, {"increment": 3}, [3, 3, 3, 1]),
        (10, {"base": 10, "increment": 1}, [10]),
        (100, {"base": 50, "increment": 5}, [50] + [5] * 10),
    ],
)
def test_no_class_is_dropped(n, settings, sizes):
    assert split_sizes(n, **settings) == sizes
    assert sum(sizes) == n


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_experiences": 11}, "1 to 10"),
        ({"base": 11}, "1 to 10"),
        ({"increment": 0}, "1 or more"),
    ],
)
def test_impossible_splits_are_refused(settings, message):
    with pytest.raises(BadValue, match=message):
        split_sizes(10, **settings)


def test_labels_are_positions_in_the_order_of_arrival():
    order = [7, 2, 9, 0, 1, 3, 4, 5, 6, 8]
    fixed, given = split_digits(), split_digits(class_order=order)
    assert [n for e in given.experiences for n in (given.class_names[c] for c in e.classes)] == [
        str(d) for d in order
    ]
    sevens = given.experiences[0].train
    sevens = sevens.column("x")[sevens.column("y") == 0]
    before = fixed.experiences[3].train
    assert torch.equal(sevens, before.column("x")[before.column("y") == 7])


def test_class_orders():
    names = [str(k) for k in range(6)]
    assert class_order(names, "fixed", 0) == list(range(6))
    assert class_order(names, "seeded", 3) == class_order(names, "seeded", 3)
    assert class_order(names, "seeded", 3) != class_order(names, "seeded", 4)
    with pytest.raises(BadValue, match="each of 0..5 once"):
        class_order(names, [0, 1, 1, 2, 3, 4], 0)


def test_every_image_is_in_exactly_one_split():
    stream = split_digits()
    rows = [t.index for e in stream.experiences for t in (e.train, e.val)]
    rows = torch.cat(rows + [e.test.index for e in stream.evals])
    assert sorted(rows.tolist()) == list(range(1797))


def test_validation_is_stratified_with_one_item_at_least():
    data = blobs(4, per_class=10)  # 8 training rows per class
    stream = class_incremental("s", data, sizes=[4], order="fixed", val=0.05, seed=0)
    y = stream.experiences[0].val.column("y")
    assert torch.bincount(y).tolist() == [1, 1, 1, 1]
    none = class_incremental("s", data, sizes=[4], order="fixed", val=0, seed=0)
    assert none.experiences[0].val is None and none.evals[0].val is None


def test_a_class_too_small_to_validate_is_named():
    data = blobs(3, per_class=10)
    keep = torch.cat([data.train[data.y[data.train] != 1], data.train[data.y[data.train] == 1][:1]])
    data.train = keep
    with pytest.raises(
        BadValue, match=r"stream.val=0.1 leaves class '1' no training item of its 1"
    ):
        class_incremental("s", data, sizes=[3], order="fixed", val=0.1, seed=0)


def test_the_content_hash_sees_values_labels_splits_and_order():
    base = split_digits().content_hash()
    assert split_digits().content_hash() == base
    for change in (
        {"seed": 1},
        {"val": 0.2},
        {"test": 0.3},
        {"class_order": "seeded"},
        {"n_experiences": 4},
        {"val": 0.0},
    ):
        assert split_digits(**change).content_hash() != base, change


def test_statistics_come_from_experience_0_alone():
    data = blobs(4, shape=(3, 8, 8))
    stream = class_incremental("s", data, sizes=[2, 2], order="fixed", val=0, seed=0)
    x = stream.transform(stream.experiences[0].train.column("x"))
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(3), atol=1e-2)
    later = stream.transform(stream.experiences[1].train.column("x"))
    assert later.mean((0, 2, 3)).abs().max() > 1e-3


def test_normalising_bytes_agrees_with_numpy_and_survives_constant_channels():
    x = torch.randint(0, 256, (50, 3, 6, 6), dtype=torch.uint8)
    x[:, 2] = 7
    out = Normalise.fit(x)(x).numpy()
    raw = x.numpy().astype(np.float64)
    for c in (0, 1):
        expected = (raw[:, c] - raw[:, c].mean()) / raw[:, c].std()
        np.testing.assert_allclose(out[:, c], expected, atol=1e-4)
    assert np.abs(out[:, 2]).max() < 1e-3


# -- images ---------------------------------------------------------------------------------------


def picture(seed, size=(9, 9), mode="RGB"):
    rng = np.random.default_rng(seed)
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def write(folder, files, **kwargs):
    for k, name in enumerate(files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(k, **kwargs).save(path)
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


FLAT = [f"{c}/{k}.png" for c in ("cat", "dog", "eel") for k in range(6)]
SPLIT = [f"{s}/{c}/{k}.png" for s in ("train", "test") for c in ("cat", "dog") for k in range(4)]
DEEP = [f"wrap/{a}/{c}/{k}.png" for a in ("A", "B") for c in ("one", "two") for k in range(4)]


def test_a_folder_and_its_zip_are_the_same_stream(tmp_path):
    folder = write(tmp_path / "pets", FLAT)
    archive = zipped(folder, tmp_path / "pets.zip")
    left = image_folder(path=folder, n_experiences=3)
    right = image_folder(path=archive, n_experiences=3)
    assert left.content_hash() == right.content_hash()
    assert left.class_names == ["cat", "dog", "eel"] and left.input_shape == (3, 9, 9)


def test_train_and_test_folders_are_the_splits(tmp_path):
    folder = write(tmp_path / "w", [f"wrapped/{name}" for name in SPLIT])
    stream = image_folder(path=folder, n_experiences=2, val=0)
    assert [len(e.train) for e in stream.experiences] == [4, 4]
    assert [len(e.test) for e in stream.evals] == [4, 4]
    pixels = np.asarray(Image.open(folder / "wrapped/test/dog/2.png")).transpose(2, 0, 1)
    assert any(np.array_equal(x, pixels) for x in stream.evals[1].test.column("x").numpy())


def test_a_val_folder_stands_in_for_a_missing_test_folder(tmp_path):
    folder = write(tmp_path / "v", [name.replace("test/", "val/") for name in SPLIT])
    stream = image_folder(path=folder, n_experiences=2, val=0)
    assert [len(e.test) for e in stream.evals] == [4, 4]


def test_leaf_folders_are_classes_named_by_their_path(tmp_path):
    stream = image_folder(path=write(tmp_path / "d", DEEP), n_experiences=2)
    assert stream.class_names == ["A/one", "A/two", "B/one", "B/two"]


def test_size_fits_the_shorter_side_and_cuts_the_centre(tmp_path):
    folder = tmp_path / "s"
    for c in ("a", "b"):
        for k in range(4):
            image = np.zeros((10, 30), np.uint8)
            image[:, 10:20] = 200  # the centre square
            (folder / c).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / c / f"{k}.png")
    stream = image_folder(path=folder, size=5, n_experiences=2)
    x = stream.experiences[0].train.column("x")
    assert stream.input_shape == (1, 5, 5)
    assert bool((x[..., 1:4] == 200).all()) and x.min() > 100  # bilinear at the edges only


def test_one_colour_image_makes_all_of_them_colour(tmp_path):
    folder = write(tmp_path / "g", FLAT, mode="L")
    assert image_folder(path=folder, n_experiences=3).input_shape == (1, 9, 9)
    picture(0).save(folder / "cat" / "5.png")
    assert image_folder(path=folder, n_experiences=3).input_shape == (3, 9, 9)


def test_per_class_limits_training_images_only(tmp_path):
    stream = image_folder(path=write(tmp_path / "p", SPLIT), n_experiences=2, per_class=2, val=0)
    assert [len(e.train) for e in stream.experiences] == [2, 2]
    assert [len(e.test) for e in stream.evals] == [4, 4]


def corrupt_zip(tmp_path):
    folder = write(tmp_path / "c", FLAT)
    (folder / "dog" / "3.png").write_bytes(b"not a picture")
    return zipped(folder, tmp_path / "c.zip")


def truncated_zip(tmp_path):
    folder = write(tmp_path / "t", FLAT)
    data = (folder / "dog" / "3.png").read_bytes()
    (folder / "dog" / "3.png").write_bytes(data[: len(data) // 2])
    return zipped(folder, tmp_path / "t.zip")


def empty(tmp_path):
    (tmp_path / "e" / "cat").mkdir(parents=True)
    return tmp_path / "e"


def broken_crc(tmp_path):
    archive = zipped(write(tmp_path / "b", FLAT), tmp_path / "b.zip")
    data = bytearray(archive.read_bytes())
    at = data.find(b"IDAT")
    data[at + 8] ^= 0xFF
    archive.write_bytes(data)
    return archive


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t / "nowhere", "no file or folder"),
        (empty, "holds no image"),
        (
            lambda t: write(t / "o", [f"only/{k}.png" for k in range(5)]),
            "one class only \\('only'\\)",
        ),
        (
            lambda t: write(t / "f", [f"{k}.png" for k in range(5)]),
            "lies outside the class folders",
        ),
        (corrupt_zip, "dog/3.png can't be read: not an image"),
        (truncated_zip, "dog/3.png can't be read"),
        (broken_crc, "can't be read"),
        (
            lambda t: (t / "x.zip").write_bytes(b"zip?") and t / "x.zip",
            "neither a folder nor a zip",
        ),
        (lambda t: write(t / "st", [*SPLIT, "extra/cat/1.png"]), "'extra' beside train/"),
    ],
)
def test_unusable_images_are_named_in_one_line(make, message, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        image_folder(path=make(tmp_path), n_experiences=2)
    assert "\n" not in str(error.value)


def test_mixed_sizes_ask_for_a_size(tmp_path):
    folder = write(tmp_path / "m", FLAT)
    picture(0, size=(12, 9)).save(folder / "eel" / "0.png")
    with pytest.raises(DataError, match="is 12x9.*give stream.size"):
        image_folder(path=folder, n_experiences=3)
    assert image_folder(path=folder, n_experiences=3, size=8).input_shape == (3, 8, 8)


def test_hidden_files_and_other_suffixes_are_ignored(tmp_path):
    folder = write(tmp_path / "h", FLAT)
    (folder / "__MACOSX" / "cat").mkdir(parents=True)
    (folder / "__MACOSX" / "cat" / "1.png").write_bytes(b"junk")
    (folder / "cat" / ".hidden.png").write_bytes(b"junk")
    (folder / "cat" / "notes.txt").write_text("junk")
    assert len(image_folder(path=folder, n_experiences=3).class_names) == 3


def test_a_test_class_without_training_images_is_named(tmp_path):
    folder = write(tmp_path / "n", [*SPLIT, "test/yak/0.png"])
    with pytest.raises(DataError, match="class 'yak' has no training item"):
        image_folder(path=folder, n_experiences=3)


def test_zip_members_outside_the_archive_are_not_read(tmp_path):
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for c in ("a", "b"):
            archive.writestr(f"../../{c}/0.png", buffer.getvalue())
    with pytest.raises(DataError, match="holds no image"):
        image_folder(path=path, n_experiences=2)


@pytest.mark.slow
def test_cifar10_reads_from_its_zip(data_folder):
    stream = image_folder(path=data_folder / "cifar10-jpeg.zip", base=5, increment=1)
    assert [len(e.train) + len(e.val) for e in stream.experiences] == [25000] + [5000] * 5
    assert [len(e.test) for e in stream.evals] == [5000] + [1000] * 5
    assert stream.input_shape == (3, 32, 32)


def test_omniglot_reads_from_its_zip(data_folder):
    stream = image_folder(path=data_folder / "omniglot-small1.zip", size=28, increment=20)
    assert len(stream.class_names) == 136 and stream.input_shape == (1, 28, 28)
    assert sum(len(e.test) for e in stream.evals) == 136 * 4


def test_16_bit_images_keep_their_greys(tmp_path):
    folder = write(tmp_path / "deep", FLAT, mode="L")
    values = np.arange(81, dtype=np.uint16).reshape(9, 9) * 800
    for c in ("cat", "dog", "eel"):
        for k in range(6):
            Image.fromarray(values).save(folder / c / f"{k}.png")
    x = image_folder(path=folder, n_experiences=3).experiences[0].train.column("x")
    np.testing.assert_array_equal(x[0, 0].numpy(), values >> 8)


def test_linked_class_folders_are_followed_and_broken_links_said(tmp_path):
    folder = write(tmp_path / "l", FLAT)
    (folder / "eel").rename(tmp_path / "elsewhere")
    (folder / "eel").symlink_to(tmp_path / "elsewhere")
    (folder / "cat" / "loop").symlink_to(folder)
    assert image_folder(path=folder, n_experiences=3).class_names == ["cat", "dog", "eel"]
    (folder / "cat" / "9.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="9.png is a broken link"):
        image_folder(path=folder, n_experiences=3)


def test_split_folders_are_told_by_name_whatever_their_case(tmp_path):
    names = [name.replace("train", "Train").replace("test", "TEST") for name in SPLIT]
    stream = image_folder(path=write(tmp_path / "case", names), n_experiences=2, val=0)
    assert stream.class_names == ["cat", "dog"] and [len(e.test) for e in stream.evals] == [4, 4]


def test_a_test_folder_alone_is_refused(tmp_path):
    folder = write(tmp_path / "t", [name for name in SPLIT if name.startswith("test")])
    with pytest.raises(DataError, match="holds test/ alone"):
        image_folder(path=folder, n_experiences=2)


def test_equal_shares_and_base_exclude_each_other():
    with pytest.raises(BadValue, match="not both"):
        split_sizes(10, n_experiences=5, base=4)
    assert split_sizes(10) == [2] * 5 and split_sizes(3) == [1, 1, 1]
