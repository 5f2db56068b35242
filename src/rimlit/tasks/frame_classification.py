"""Classification of sequences of pictures: one class after the last, or one at each."""

from collections.abc import Sequence

from rimlit.backbones import BackboneFactory
from rimlit.encoders import ConvolutionalEncoder, EncoderFactory
from rimlit.heads import HeadFactory
from rimlit.tasks.classification import ClassificationTask
from rimlit.tasks.signatures import OptimizerFactory, SchedulerFactory


class FrameClassificationTask(ClassificationTask):
    """A :class:`ClassificationTask` whose steps are pictures (channels, height, width) of bytes.

    Args:
        backbone: Factory of the backbone, called with the encoder's output size.
        output_size: Classes; from the data module.
        frame_shape: Channels, height and width of a picture; from the data module.
        encoder: Factory of the encoder, called with ``frame_shape``; by default convolutions to one vector.
        head: Factory of the head; by default a linear map of all features.
        optimizer: Factory, called with the parameters; by default Adam at 7e-4.
        scheduler: Factory, called with the optimiser; none by default.

    Raises:
        ConfigError: A factory is of a kind that a checkpoint could not hold, or a size is missing or out of its
            range.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from rimlit import LSTM
        >>> task = FrameClassificationTask(partial(LSTM, hidden_size=16), output_size=5, frame_shape=(3, 32, 32))
        >>> logits, state = task(torch.zeros(2, 11, 3, 32, 32, dtype=torch.uint8))
        >>> logits.shape
        torch.Size([2, 11, 5])
    """

    def __init__(
        self,
        backbone: BackboneFactory,
        output_size: int,
        frame_shape: Sequence[int],
        *,
        encoder: EncoderFactory = ConvolutionalEncoder,
        head: HeadFactory | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(
            backbone,
            output_size,
            input_size=list(frame_shape),  # type: ignore[arg-type]  # it is the encoder's business alone
            encoder=encoder,
            head=head,
            optimizer=optimizer,
            scheduler=scheduler,
        )
