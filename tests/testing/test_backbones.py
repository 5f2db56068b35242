"""Every law of backbones can fail: a small class breaks it, and the message names class, law and values."""

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.backbones import Backbone
from rimlit.backbones.layouts import ends_of
from rimlit.testing import check_backbone, laws_of
from rimlit.types import State, loads_as_data, replace_state
from tests.laws.cases import law_cases


@loads_as_data
class Memory(NamedTuple):
    """The state of :class:`Tiny`."""

    hidden: Tensor


class Unregistered(NamedTuple):
    """A state that plain data cannot hold."""

    hidden: Tensor


class Tiny(Backbone):
    """A network of one layer that keeps every law; what is below breaks one each."""

    def __init__(self, input_size: int = 5, hidden_size: int = 8) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.linear = nn.Linear(input_size + hidden_size, hidden_size)
        self.start = nn.Parameter(torch.rand(hidden_size))

    def initial_state(self, batch_size: int) -> Any:
        return Memory(self.start.expand(batch_size, self.hidden_size))

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        state, initial = self.starting_state(inputs, state)
        features = []
        for step in range(inputs.shape[1]):
            if resets is not None:
                state = replace_state(state, initial, resets[:, step])
            state = type(initial)(self.linear(torch.cat([inputs[:, step], state.hidden], dim=-1)).tanh())
            features.append(state.hidden)
        return torch.stack(features, dim=1), state


class Changed(Tiny):
    """Changes the features; a subclass says how."""

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        features, state = super().forward(inputs, state, resets)
        return self.changed(features, inputs), state

    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        raise NotImplementedError


class MixesTheBatch(Changed):
    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        return features + features[:1]


class SpreadsNaN(Changed):
    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        return features + 0 * inputs.sum()


class Draws(Changed):
    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        return features + torch.rand_like(features)


class ReturnsFloat32(Changed):
    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        return features.float()


class LooksAhead(Changed):
    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        return features + features.mean(dim=1, keepdim=True)


class ScalesByTheGreatestInput(Changed):
    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        return features / inputs.abs().max()


class IsNaNInAutocast(Changed):
    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        return features * torch.nan if torch.is_autocast_enabled("cpu") else features


class IsOtherInAutocast(Changed):
    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        return features + 1 if torch.is_autocast_enabled("cpu") else features


class IsOtherCompiled(Changed):
    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        return features + 1 if torch.compiler.is_compiling() else features


class IsOtherOnAGPU(Changed):
    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        return features + 1 if inputs.is_cuda else features


class ExportsOneBatchSize(Changed):
    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        return features if len(inputs) == 3 else features + 1


class FailsOnNothing(Tiny):
    def run_empty(self, run: Any, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        return run(inputs + inputs[0], state, None)


class AcceptsBatchesOnly(Tiny):
    pass


AcceptsBatchesOnly.forward = vars(Tiny)["forward"].__wrapped__  # type: ignore[method-assign]


class EndsAtTheStart(Tiny):
    def final_features(self, features: Any, lengths: Any = None) -> Tensor:
        return ends_of(features, lengths)[0]


class SharesMemory(Tiny):
    def forward(self, *args: Any) -> tuple[Tensor, State]:
        features, _ = super().forward(*args)
        return features, Memory(features[:, -1])


class CallsNoModule(Tiny):
    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        state, _ = self.starting_state(inputs, state)
        new = functional.linear(torch.cat([inputs[:, 0], state.hidden], dim=-1), *self.linear.parameters())
        return new[:, None].expand(-1, inputs.shape[1], -1), Memory(new)


class ReadsValues(Changed):
    def changed(self, features: Tensor, inputs: Tensor) -> Tensor:
        return features * float(inputs.abs().max() >= 0)


class SavesTooLittle(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(8, dtype=torch.float64)

    def forward(self, *args: Any) -> tuple[Tensor, State]:
        features, state = super().forward(*args)
        return features * self.scale, state


class CannotBePickled(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.activation = lambda values: values


class HasAnIdleParameter(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(3))


class DeclaresAnotherSize(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.output_size = 9


class StartsFromZero(Tiny):
    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        zeros = Memory(torch.zeros_like(self.initial_state(len(inputs)).hidden))
        return super().forward(inputs, zeros if state is None else state, resets)


class WantsItsOwnState(Tiny):
    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return super().forward(inputs, None if state is None else Memory(state.hidden), resets)


class StateIsNotRegistered(Tiny):
    def initial_state(self, batch_size: int) -> Any:
        return Unregistered(*super().initial_state(batch_size))


class StepsOtherwise(Tiny):
    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        features, _ = super().step(inputs, state)
        return features, state


class DropsResetsOfTokens(Tiny):
    def forward_tokens(
        self, tokens: Tensor, table: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return super().forward_tokens(tokens, table, state)


class IgnoresResets(Tiny):
    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return super().forward(inputs, state)


class ResetsAlways(Tiny):
    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return super().forward(inputs, state if resets is None else None, resets)


class CutsTheGraph(Tiny):
    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        cut = None if state is None else Memory(state[0].detach())
        return super().forward(inputs, cut, resets)


class CutsTheInputs(Tiny):
    def forward(self, inputs: Tensor, *args: Any) -> tuple[Tensor, State]:
        return super().forward(inputs.detach(), *args)


class StateIsFloat32(Tiny):
    def forward(self, *args: Any) -> tuple[Tensor, State]:
        features, state = super().forward(*args)
        return features, Memory(state.hidden.float())


class StaysOnTheCPU(Tiny):
    def forward(self, *args: Any) -> tuple[Tensor, State]:
        features, state = super().forward(*args)
        return features, Memory(torch.zeros(state.hidden.shape))


NUMBERS = r"got -?[\d.e-]+, expected -?[\d.e-]+; \d+ of \d+ numbers differ"

BROKEN: dict[str, tuple[type[Tiny], str]] = {
    "permuting_batch_permutes_outputs": (MixesTheBatch, rf"outputs\[0\] at \[0, 0, 0\]: {NUMBERS}"),
    "nan_stays_in_its_sample": (SpreadsNaN, r"outputs\[0\] at \[0, 0, 0\]: got nan, expected .*; 96 of 96"),
    "repeating_gives_the_same": (Draws, rf"outputs\[0\] at \[0, 0, 0\]: {NUMBERS} \(tolerance 0 relative"),
    "saved_weights_give_the_same": (SavesTooLittle, rf"outputs\[0\] at \[0, 0, 0\]: {NUMBERS}"),
    "copies_give_the_same": (CannotBePickled, "(PicklingError|AttributeError): Can't pickle .*lambda"),
    "every_parameter_gets_a_gradient": (HasAnIdleParameter, "the gradient of idle is None$"),
    "dtype_follows_the_weights": (
        ReturnsFloat32,
        r"outputs\[0\] has dtype torch\.float32, and the weights have torch\.float64",
    ),
    "shapes": (DeclaresAnotherSize, r"features have shape \(3, 6, 8\); expected \(3, 6, 9\)"),
    "sizes_have_their_names": (DeclaresAnotherSize, "features have 8 numbers a step"),
    "one_sequence_needs_no_batch": (AcceptsBatchesOnly, "RuntimeError: Tensors must have same number of dim"),
    "packed_sequences_are_read": (AcceptsBatchesOnly, "'PackedSequence' object has no attribute 'shape'"),
    "final_features": (EndsAtTheStart, rf"final_features at \[0\]: {NUMBERS}"),
    "two_directions_are_two_backbones": (
        ScalesByTheGreatestInput,
        rf"features of sample 0 at \[0, 0, 0\]: {NUMBERS}",
    ),
    "in_place_changes_are_safe": (SharesMemory, rf"state and inputs\[0\] at \[0, 0\]: {NUMBERS}"),
    "hooks_are_called_or_named": (CallsNoModule, "the hook on linear is not called, and no warning says so"),
    "torch_func_works": (ReadsValues, r"RuntimeError: vmap: It looks like you're calling \.item\(\)"),
    "traced_takes_any_batch": (ExportsOneBatchSize, rf"result of the traced module\[0\] at .*: {NUMBERS}"),
    "empty_batch": (FailsOnNothing, "IndexError: index 0 is out of bounds"),
    "no_state_means_the_initial_state": (StartsFromZero, rf"result\[0\] at \[0, 0, 0\]: {NUMBERS}"),
    "plain_states_are_read": (WantsItsOwnState, "AttributeError: 'tuple' object has no attribute 'hidden'"),
    "saved_states_load_as_data": (StateIsNotRegistered, r"UnpicklingError: .*Unregistered"),
    "step_equals_sequence": (StepsOtherwise, rf"features of step at \[0, 1, 0\]: {NUMBERS}"),
    "tokens_equal_their_vectors": (DropsResetsOfTokens, rf"result of forward_tokens\[0\] at \[.*\]: {NUMBERS}"),
    "reset_starts_again": (IgnoresResets, rf"features of sample 0 from step 0 at \[0, 0, 0\]: {NUMBERS}"),
    "no_reset_changes_nothing": (ResetsAlways, rf"result\[0\] at \[0, 0, 0\]: {NUMBERS}"),
    "later_inputs_change_nothing_before": (LooksAhead, rf"features before the change at \[0, 0, 0\]: {NUMBERS}"),
    "padding_changes_nothing": (
        ScalesByTheGreatestInput,
        rf"result of padded sequences\[0\] at \[0, 0, 0\]: {NUMBERS}",
    ),
    "gradients_reach_inputs_and_state": (CutsTheGraph, r"state\.hidden gets no gradient"),
    "bfloat16_weights_work": (
        StateIsFloat32,
        r"result\[1\]\.hidden has dtype torch\.float32, and the weights have torch\.bfloat16",
    ),
    "device_follows_the_weights": (StaysOnTheCPU, r"result\[1\]\.hidden is on cpu, and the weights are on meta"),
    "autocast_trains": (IsNaNInAutocast, r"the gradient of start is not finite"),
    "autocast_stays_near": (IsOtherInAutocast, rf"features at \[0, 0, 0\]: {NUMBERS} \(tolerance 0\.05 relative"),
    "compiled_equals_eager": (IsOtherCompiled, rf"result and gradients\[0\] at \[\d, 0, 0\]: {NUMBERS}"),
    "exported_takes_any_batch": (ExportsOneBatchSize, "(ConstraintViolationError|UserError)"),
    "gpu_equals_cpu": (IsOtherOnAGPU, rf"result\[0\] at \[0, 0, 0\]: {NUMBERS}"),
}


def test_every_law_has_a_class_that_breaks_it() -> None:
    laws = laws_of("backbone", slow=True, gpu=True)
    assert {law.__name__.removeprefix("check_") for law in laws} == set(BROKEN)


@pytest.mark.parametrize("law", law_cases("backbone"))
def test_a_law_catches_what_breaks_it_and_says_what_it_saw(law: Any) -> None:
    name = law.__name__.removeprefix("check_")
    cls, message = BROKEN[name]
    with pytest.raises(AssertionError) as caught:
        law(cls)
    start, _, rest = str(caught.value).partition(": ")
    assert start == f"{cls.__name__} breaks the law '{name.replace('_', ' ')}'"
    assert pytest.raises(ValueError, match=message).matches(ValueError(rest)), rest


@pytest.mark.parametrize("law", law_cases("backbone"))
def test_a_plain_backbone_keeps_every_law(law: Any) -> None:
    law(partial(Tiny, 4, 6))


def test_inputs_without_a_gradient_are_named_by_their_step() -> None:
    law = next(law for law in laws_of("backbone") if "reach_inputs" in law.__name__)
    with pytest.raises(AssertionError, match=r"^CutsTheInputs breaks .*: the inputs of step 0 get no gradient$"):
        law(CutsTheInputs)


def test_the_driver_runs_all_and_names_every_law_that_is_broken() -> None:
    check_backbone(Tiny)
    check_backbone(Tiny())
    with pytest.raises(AssertionError) as caught:
        check_backbone(MixesTheBatch)
    lines = str(caught.value).splitlines()
    assert len(lines) == len([line for line in lines if line.startswith("MixesTheBatch breaks the law '")]) >= 3
    check_backbone(CannotBePickled, skip=["check_copies_give_the_same"])
