"""The laws of heads and encoders can fail, and the messages name class, law and values."""

import pytest
import torch
from torch import Tensor

from rimlit.encoders import Identity
from rimlit.heads import LinearHead
from rimlit.testing import check_encoder, check_head, laws_of

INPUTS = torch.randn(2, 5, 4)


class LooksAround(LinearHead):
    def forward(self, features: Tensor) -> Tensor:
        outputs = super().forward(features)
        return outputs - outputs.mean(dim=1, keepdim=True)


class IsWider(LinearHead):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).repeat(1, 1, 2)


class GuessesTheSize(LinearHead):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).reshape(*features.shape[:2], -1)


class DropsTheTime(Identity):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(0, 1)


def test_heads_and_encoders_share_their_laws() -> None:
    own = {
        "check_outputs_have_the_declared_size",
        "check_empty_inputs_give_empty_outputs",
        "check_steps_are_mapped_one_by_one",
    }
    every = {law.__name__ for law in laws_of("head")}
    assert own < every == {law.__name__ for law in laws_of("encoder")}
    assert every - own < {law.__name__ for law in laws_of("backbone")}  # tried there


def test_steps_that_look_at_others_are_caught() -> None:
    message = r"LooksAround breaks the law 'steps are mapped one by one': outputs of step 2 alone at .*: got -?0, "
    with pytest.raises(AssertionError, match=message):
        check_head(lambda: LooksAround(4, 3))


@pytest.mark.parametrize("given", [None, INPUTS])
def test_outputs_of_another_size_are_caught(given: Tensor | None) -> None:
    steps = "(3, 6, " if given is None else "(2, 5, "
    with pytest.raises(AssertionError) as caught:
        check_head(lambda: IsWider(4, 3), given)
    says = f"outputs have shape {steps}6); expected {steps}output_size=3)"
    assert str(caught.value) == f"IsWider breaks the law 'outputs have the declared size': {says}"


def test_a_head_that_fails_on_an_empty_batch_is_caught() -> None:
    message = "GuessesTheSize breaks the law 'empty inputs give empty outputs': RuntimeError: cannot reshape"
    with pytest.raises(AssertionError, match=message):
        check_head(lambda: GuessesTheSize(4, 3))


def test_an_encoder_that_drops_the_time_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"outputs have shape \(10, 4\); expected \(2, 5, output_size=4\)"):
        check_encoder(lambda: DropsTheTime(4), INPUTS)


def test_what_an_encoder_reads_must_be_given_and_be_large_enough() -> None:
    law = laws_of("encoder")[0]
    with pytest.raises(ValueError, match=r"inputs must be given for a Identity; got inputs=None\."):
        law(lambda: Identity(4))
    with pytest.raises(ValueError, match=r"at least 2 samples and 5 steps; got shape \(1, 5, 4\)\."):
        law(lambda: Identity(4), INPUTS[:1])
