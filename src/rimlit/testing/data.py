"""Laws of data modules: what is the same for a seed, what is declared, what is resumed."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias
from unittest import SkipTest

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from rimlit import spec
from rimlit.data import DataModule
from rimlit.data.base import SPLITS, Split
from rimlit.metrics import IGNORED
from rimlit.testing.laws import check_laws, law, make, require, require_close, tensors_in

Subject: TypeAlias = DataModule | Callable[[], DataModule]
"""A data module, which is copied, or what builds one."""

NUM_BATCHES = 3
"""Batches of each loader that are compared."""

NUM_SAMPLES = 500
"""Samples of each dataset that are compared between splits."""


def check_data_module(build: Subject, *, slow: bool = False, gpu: bool = False, skip: Iterable[str] = ()) -> None:
    """Run every law of data modules; see :func:`rimlit.testing.check_laws`.

    Args:
        build: Builds a small data module, of which training has at least 3 batches; a data module is copied
            instead.
        slow: Whether to run the slow laws too, which start loader processes.
        gpu: Whether to run the laws that need a CUDA device too.
        skip: Names of laws that are not run.

    Example:
        >>> from rimlit.data import Copying
        >>> check_data_module(lambda: Copying(train_span=5, test_spans=[5], val_size=8, test_size=8, batch_size=4))
    """
    check_laws("data_module", build, slow=slow, gpu=gpu, skip=skip)


def ready(build: Subject) -> DataModule:
    """Return a fresh data module after ``prepare_data`` and ``setup``."""
    data: DataModule = make(build)
    data.prepare_data()
    data.setup("fit")
    return data


def loaders_of(data: DataModule, split: Split) -> list[DataLoader[Any]]:
    """Return the loader of each group of a split."""
    loaders = getattr(data, f"{split}_dataloader")()
    return loaders if isinstance(loaders, list) else [loaders]


def first_batches(data: DataModule, split: Split, count: int = NUM_BATCHES) -> list[list[Any]]:
    """Return the first batches of each loader of a split."""
    return [list(itertools.islice(loader, count)) for loader in loaders_of(data, split)]


@law("data_module")
def check_seed_fixes_the_batches(build: Subject) -> None:
    """Two data modules built alike give the same batches of every split, in the same order."""
    one, other = ready(build), ready(build)
    for split in SPLITS:
        batches = first_batches(one, split)
        require(all(batches), f"a loader of {split} has no batch")
        require_close(f"batches of {split}", first_batches(other, split), batches, rtol=0, atol=0)


@law("data_module")
def check_spec_gives_the_batches(build: Subject) -> None:
    """What ``spec`` describes, as a checkpoint keeps it, gives the same training and validation batches."""
    data = ready(build)
    other = ready(spec.build(data.spec, DataModule))
    for split in ("train", "val"):
        batches = first_batches(data, split)
        require_close(f"batches of {split}", first_batches(other, split), batches, rtol=0, atol=0)


@law("data_module")
def check_splits_are_disjoint(build: Subject) -> None:
    """Training, validation and test share no samples, but for one in ten: real data hold some twice."""
    data = ready(build)
    samples = {split: set(_samples(data, split)) for split in SPLITS[:3]}
    for one, other in itertools.combinations(samples, 2):
        shared, least = len(samples[one] & samples[other]), min(len(samples[one]), len(samples[other]))
        text = f"{shared} of {least} samples are in {one} and in {other}"
        require(shared <= least / 10, text)


def _samples(data: DataModule, split: Split) -> Iterator[bytes]:
    for loader, dataset in zip(loaders_of(data, split), data.datasets(split).values(), strict=True):
        if isinstance(dataset, IterableDataset) or (loader.batch_size is None and loader.batch_sampler is None):
            raise SkipTest("the dataset has batches and no samples")
        size = data.size_of(dataset)
        for index in range(NUM_SAMPLES if size is None else min(NUM_SAMPLES, size)):
            sample = tensors_in("sample", dataset[index])
            yield b"".join(part.cpu().numpy().tobytes() for _, part in sample)


@law("data_module")
def check_sizes_match_the_batches(build: Subject) -> None:
    """Batches are what is declared.

    ``batch_size`` is the number of training sequences, ``vocabulary_size`` bounds tokens, ``input_size`` is the
    number of features, ``output_size`` that of the values to predict, or it bounds classes.
    """
    data = ready(build)
    sizes = {name: getattr(data, name, None) for name in ("vocabulary_size", "input_size", "output_size")}
    for split in SPLITS[:3]:
        for batch in itertools.chain.from_iterable(first_batches(data, split)):
            inputs, targets = getattr(batch, "inputs", None), getattr(batch, "targets", None)
            if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
                raise SkipTest("batches have no inputs and targets")
            count = len(inputs)
            is_right = count == data.batch_size if split == "train" else count >= 1
            require(is_right, f"a batch of {split} has {count} sequences; batch_size={data.batch_size}")
            require(len(targets) == count, f"a batch of {split} has {count} inputs and {len(targets)} targets")
            lengths = getattr(batch, "lengths", None)
            if lengths is not None:
                is_right = len(lengths) == count and 1 <= lengths.min() <= lengths.max() <= inputs.shape[1]
                require(
                    bool(is_right), f"lengths of {split} are {lengths.tolist()}; there are {inputs.shape[1]} steps"
                )
            vocabulary_size, input_size, output_size = sizes.values()
            if vocabulary_size is not None:
                _require_below(f"inputs of {split}", inputs, "vocabulary_size", vocabulary_size)
            if input_size is not None:
                _require_width(f"inputs of {split}", inputs, "input_size", input_size)
            if output_size is not None and targets.is_floating_point():
                _require_width(f"targets of {split}", targets, "output_size", output_size)
            elif output_size is not None:
                _require_below(f"targets of {split}", targets[targets != IGNORED], "output_size", output_size)


def _require_below(what: str, values: Tensor, name: str, size: int) -> None:
    low, high = (int(bound) for bound in values.aminmax()) if values.numel() else (0, 0)
    require(0 <= low <= high < size, f"{what} are between {low} and {high}; {name}={size}")


def _require_width(what: str, values: Tensor, name: str, size: int) -> None:
    require(values.shape[-1] == size, f"{what} have {values.shape[-1]} features; {name}={size}")


@law("data_module")
def check_groups_have_loaders(build: Subject) -> None:
    """Every group of every split has a loader and a name of its own; training has one group."""
    data = ready(build)
    for split in SPLITS:
        names, count = data.group_names(split), len(loaders_of(data, split))
        require(len(names) == count, f"{split} has {count} loaders and {len(names)} groups: {names}")
        require(len(set(names)) == count, f"two groups of {split} have one name: {names}")
    names = data.group_names("train")
    require(len(names) == 1, f"train has {len(names)} groups: {names}")


@law("data_module")
def check_digest_is_stable(build: Subject) -> None:
    """The digest is a SHA-256 or None, the same for data modules built alike and after batches were read."""
    one, other = make(build), ready(build)
    digest = one.digest
    is_digest = digest is None or (isinstance(digest, str) and len(digest) == 64)
    require(is_digest, f"the digest is {digest!r}, and no SHA-256 in 64 digits")
    first_batches(other, "train")
    require(other.digest == digest, f"the digest is {digest} at first and {other.digest} after reading")


@law("data_module")
def check_resuming_continues_the_stream(build: Subject) -> None:
    """After ``start_training_at(0, n)`` the training loader begins with batch n of the epoch."""
    whole = first_batches(ready(build), "train")[0]
    require(len(whole) == NUM_BATCHES, f"train has {len(whole)} batches; the law needs {NUM_BATCHES}")
    data = ready(build)
    data.start_training_at(0, 2)
    require_close("batch 2", first_batches(data, "train", 1)[0], whole[2:], rtol=0, atol=0)


@law("data_module", slow=True)
def check_workers_give_the_same(build: Subject) -> None:
    """A loader process gives the batches that the training process loads itself."""
    expected = first_batches(ready(build), "train")
    data = ready(build)
    data.num_workers = 1
    require_close("batches", first_batches(data, "train"), expected, rtol=0, atol=0)
