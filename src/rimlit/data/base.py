"""The contract of every data module: sizes as plain ints, one loader per named group of samples."""

import inspect
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from rimlit.checks import require_at_least
from rimlit.data.checks import CheckedCollate, FiniteIndexed, Indexed, Sizes
from rimlit.data.drawn import SPLITS as SPLITS
from rimlit.data.drawn import DrawnDataset
from rimlit.data.drawn import Split as Split
from rimlit.data.sampling import (
    EpochBatches,
    FiniteIndexSampler,
    FiniteStartingAt,
    IndexSampler,
    StartingAt,
    index_sampler,
    rank_and_world_size,
    share_of,
)
from rimlit.errors import ConfigError, DataError
from rimlit.spec import Rebuildable, Spec
from rimlit.training._lightning import uses_distributed_sampler
from rimlit.types import SequenceBatch

log = logging.getLogger(__name__)

PLACES = ("path", "dataset")
"""Arguments of a data module that name where its files are; their content is identified by the digest."""


class DataModule(Rebuildable, L.LightningDataModule, ABC):
    """Base of all data modules.

    A subclass sets ``name``, gives :meth:`datasets`, and declares the sizes its tasks need as attributes or
    properties that are plain ints (``vocabulary_size``, ``input_size``, ``output_size``, …): the command line
    passes them to the task's arguments of the same name.

    Args:
        batch_size: Sequences in a batch over all processes, at least 1 and a multiple of their number.
        num_workers: Loader processes, 0 to load in the training process.
        seed: Seed of everything drawn here; None takes the run's ``seed_everything``, or 0.

    Raises:
        ConfigError: A value is out of its range.
    """

    strict: bool = False
    """Whether doubtful data are an error; a subclass that can doubt its data takes it as an argument."""

    eval_batch_size: int | None = None
    """Sequences in a batch of validation, test and prediction; None for as many as in training."""

    def __init__(self, *, batch_size: int = 64, num_workers: int = 0, seed: int | None = None) -> None:
        super().__init__()
        require_at_least(1, batch_size=batch_size)
        require_at_least(0, num_workers=num_workers)
        if seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        require_at_least(0, seed=seed)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._start = (0, 0)
        self._doubts: set[str] = set()

    def check_shares(self, world_size: int) -> None:
        """Raise a ConfigError if a batch cannot be divided evenly among ``world_size`` processes."""
        share_of(self.batch_size, world_size=world_size)
        if self.eval_batch_size is not None:
            share_of(self.eval_batch_size, key="eval_batch_size", world_size=world_size)

    def start_training_at(self, epoch: int, batch: int) -> None:
        """Let the next training loader begin at a batch of an epoch, to resume a run."""
        self._start = epoch, batch

    @abstractmethod
    def datasets(self, split: Split) -> Mapping[str, Dataset[Any]]:
        """Return the datasets of a split by the name of their group; ``""`` where there is only one."""

    def size_of(self, dataset: Dataset[Any]) -> int | None:
        """Return the number of samples in ``dataset``, None for an endless one."""
        size: int | None = dataset.size if isinstance(dataset, DrawnDataset) else len(dataset)  # type: ignore[arg-type]
        return size

    @property
    def num_epochs(self) -> int | None:
        """Epochs after which training ends; None where only the trainer's limits end it."""
        return None

    @property
    def progress(self) -> tuple[int, int] | None:
        """How much was trained on and how much there is, where that is not counted in batches of an epoch."""
        return None

    @property
    def is_endless(self) -> bool:
        """Whether the training stream never ends."""
        return any(self.size_of(dataset) is None for dataset in self.datasets("train").values())

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the trainer: workers that are spawned get the data module with its :meth:`collate`."""
        return {**self.__dict__, "trainer": None}

    def collate(self, samples: list[Any]) -> Any:
        """Turn samples into a batch; pairs of inputs (T, …) and targets become a :class:`SequenceBatch`."""
        batch = default_collate(samples)
        if type(batch) in (list, tuple) and len(batch) == 2:
            inputs, targets = batch
            return SequenceBatch(inputs, targets, torch.full((len(inputs),), inputs.shape[1]))
        return batch

    @property
    def digest(self) -> str | None:
        """What the data are: a SHA-256 of the content that was read, or would be.

        It depends on all files of training, validation and test and on which of these each is, not on their names
        and places, and not on settings such as fractions, seed or sizes. None where the data are a function of the
        settings alone. A digest may read the files.

        Raises:
            DataError: The data cannot be found or read.
        """
        return None

    def sample_name(self, split: Split, group: str, index: int) -> str | int | None:
        """Return what a prediction calls a sample: by default its index, None where its record says it already."""
        return index

    def sample_details(self, split: Split, group: str, index: int) -> dict[str, Any]:
        """Return what else a prediction says of a sample, plain data by name; by default nothing."""
        return {}

    def report_doubt(self, text: str) -> None:
        """Warn of data from which nothing can be concluded, once; with ``strict`` raise a DataError."""
        if self.strict:
            raise DataError(f"{text} (strict=True)")
        self.warn_once(text)

    def warn_once(self, text: str) -> None:
        """Log a warning in the first process, once."""
        if text not in self._doubts and rank_and_world_size()[0] == 0:
            log.warning("%s", text)
        self._doubts.add(text)

    def floors(self) -> dict[str, float]:
        """Return the scores of a model that learned only the format, by metric name."""
        return {}

    @property
    def spec(self) -> Spec:
        """How to make this data module again, with the seed it took where it takes one."""
        spec = super().spec
        parameters = inspect.signature(type(self).__init__).parameters.values()
        if "seed" in spec["init_args"] or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
            spec["init_args"]["seed"] = self.seed
        for name in ("strict", "predict_path"):  # they say nothing about the data of a run
            spec["init_args"].pop(name, None)
        return spec

    def group_names(self, split: Split) -> list[str]:
        """Return the group name of each loader of a split."""
        return list(self.datasets(split))

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the training stream."""
        loader = self._loaders("train")[0]
        (epoch, batch), self._start = self._start, (0, 0)
        if loader.batch_size is None and loader.batch_sampler is not None:
            return loader  # batches are the subclass's own: it resumes at the start of an epoch
        batches: Any = loader.batch_sampler
        sampler: Any = loader.sampler if loader.batch_size is None else batches.sampler
        if isinstance(sampler, IndexSampler):
            sampler.set_epoch(epoch)  # workers draw before Lightning would say so
        order: dict[str, Any]
        if (
            isinstance(sampler, FiniteIndexSampler)
            and sampler.shuffle
            and loader.batch_size
            and not loader.drop_last
        ):
            order = {"batch_sampler": EpochBatches(sampler, loader.batch_size, batch)}
        else:
            is_endless = isinstance(sampler, IndexSampler) and sampler.size is None
            start = (StartingAt if is_endless else FiniteStartingAt)(sampler, batch * (loader.batch_size or 1))
            order = {"batch_size": loader.batch_size, "sampler": start, "drop_last": loader.drop_last}
        return TrainingLoader(
            loader.dataset,
            **order,
            num_workers=loader.num_workers,
            persistent_workers=loader.persistent_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
        )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return a loader for each validation group."""
        return self._loaders("val")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Return a loader for each test group."""
        return self._loaders("test")

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """Return a loader for each group to predict."""
        return self._loaders("predict")

    def _loaders(self, split: Split) -> list[DataLoader[Any]]:
        trainer = self.trainer
        if trainer is not None and trainer.world_size > 1 and uses_distributed_sampler(trainer):
            raise ConfigError(
                "Several processes need Trainer(use_distributed_sampler=False): rimlit shards the samples itself, "
                "and Lightning's sampler would shard them again."
            )
        return [self.loader(dataset, split) for dataset in self.datasets(split).values()]

    def setup(self, stage: str) -> None:
        """Refuse data that cannot be used before any work is done: the size and a sample of all the stage needs.

        Raises:
            DataError: A dataset is empty, is for training and smaller than a batch, or its first sample is of
                another kind than this data module declares.
        """
        needed: dict[str, tuple[Split, ...]] = {"fit": ("train", "val", "test"), "validate": ("val",)}
        for split in needed.get(stage, (cast(Split, stage),)):
            for dataset in self.datasets(split).values():
                size = self.size_of(dataset)
                least = self.batch_size if split == "train" else 1
                if size is not None and size < least:
                    why = f", fewer than a batch; got batch_size={self.batch_size}" if size else ""
                    raise DataError(f"{self._source(split)}: there are {size} samples{why}.")
                self._checked(split)(Indexed(dataset).__getitems__([0]))

    def example(self, split: Split) -> Any:
        """Return a batch of the first sample of a split; None where samples have no indices, or there are none."""
        dataset = next(iter(self.datasets(split).values()), None)
        if dataset is None or isinstance(dataset, IterableDataset):
            return None
        return self._checked(split)(Indexed(dataset).__getitems__([0]))

    def _source(self, split: Split) -> str:
        return f"The {split} data of {type(self).__name__}"

    def _checked(self, split: Split) -> CheckedCollate:
        sizes = Sizes(*(getattr(self, name, None) for name in Sizes._fields))
        return CheckedCollate(self.collate, self._source(split), sizes, are_targets_known=split != "predict")

    def loader(self, dataset: Dataset[Any], split: Split, **options: Any) -> DataLoader[Any]:
        """Return a loader that takes ``dataset`` in the order of :class:`IndexSampler` and checks each batch."""
        size = self.size_of(dataset)
        default = self.batch_size if split == "train" else self.eval_batch_size or self.batch_size
        batch_size: int | None = options.pop("batch_size", default)
        if batch_size is not None:
            dataset = Indexed(dataset) if size is None else FiniteIndexed(dataset)
        shuffle = options.pop("shuffle", split == "train")
        return DataLoader(
            dataset,
            batch_size=None if batch_size is None else share_of(batch_size),
            sampler=index_sampler(size, shuffle=shuffle, seed=self.seed, batch_size=batch_size),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=self._checked(split) if batch_size is not None else None,
            **options,
        )


class TrainingLoader(DataLoader[Any]):
    """A loader that Lightning recognises as one that can resume in the middle of an epoch.

    Its place is kept by :class:`rimlit.training.Checkpointer`, which counts what was trained on and not what
    workers have fetched ahead.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing."""
