"""Laws of the parts of a RIM layer: of a selection by itself, and of a RIM that is built with any part.

A RIM with the part keeps the laws of backbones too: step by step equals the whole sequence, resets, save and
load, and so on (:mod:`rimlit.testing.backbones`).
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias
from unittest import SkipTest

import torch
from torch import Tensor

from rimlit.backbones import RIM
from rimlit.kernels import LOOPS, Activity, Where
from rimlit.mechanisms import Selection
from rimlit.testing.backbones import check_backbone
from rimlit.testing.laws import check_laws, law, make, require, require_close
from rimlit.testing.modules import weighted_sum
from rimlit.types import State, map_state

NUM_MECHANISMS, NUM_ACTIVE, BATCH = 5, 2, 64

SelectionSubject: TypeAlias = Selection | Callable[[], Selection]
RIMSubject: TypeAlias = RIM | Callable[[], RIM]


def rim_with(**parts: Any) -> Callable[[], RIM]:
    """Return what builds a small RIM with the given parts, for the laws.

    Example:
        >>> rim_with(selection="across_mechanisms")().num_active
        2
    """
    arguments: dict[str, Any] = {
        "num_mechanisms": NUM_MECHANISMS,
        "num_active": NUM_ACTIVE,
        "input_key_size": 4,
        "input_value_size": 6,
        "learn_initial_state": True,
    }
    if "communication" not in parts:
        arguments["communication"] = {"heads": 2, "key_size": 3, "value_size": 4}
    return lambda: RIM(3, NUM_MECHANISMS * 4, **{**arguments, **parts})


def check_part(name: str, part: Any, *, slow: bool = False, skip: Iterable[str] = (), **others: Any) -> None:
    """Run every law that a part must keep.

    Args:
        name: Which argument of the RIM it is: ``selection``, ``cell``, ``communication``, ``sharing``,
            ``input_sharing`` or ``balance``.
        part: The part, as the RIM takes it.
        slow: Whether to run the slow laws too.
        skip: Names of laws of backbones that are not run.
        others: Further arguments of the RIM, such as other parts.

    Raises:
        AssertionError: A law is broken.

    Example:
        >>> check_part("selection", {"margin": "scores", "width": 0.5})
    """
    build = rim_with(**{name: part}, **others)
    if name == "selection":
        check_laws("selection", lambda: _first(build()).selection)
    check_laws("rim", build, slow=slow)
    check_backbone(build, slow=slow, skip=skip)


def _first(rim: RIM) -> Any:
    return rim.layers[0]


def _relevance(selection: Selection, batch_size: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(selection.num_mechanisms, batch_size, generator=generator, dtype=torch.float64)


def _scores(selection: Selection, slots: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (selection.num_mechanisms, BATCH, 2, slots)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@law("selection")
def check_choice_has_its_shapes(build: SelectionSubject) -> None:
    """Attention has the shape of the scores, relevance and mask are (M, B), the mask is bool."""
    selection = make(build)
    scores = _scores(selection)
    attention, relevance = selection.attend(scores)
    require(
        attention.shape == scores.shape, f"attention has shape {tuple(attention.shape)}; expected (M, B, I, N)"
    )
    expected = (selection.num_mechanisms, BATCH)
    require(
        tuple(relevance.shape) == expected, f"relevance has shape {tuple(relevance.shape)}; expected {expected}"
    )
    active = selection.choose(relevance).active
    require(active.dtype == torch.bool, f"active is {active.dtype}; expected torch.bool")
    require(tuple(active.shape) == expected, f"active has shape {tuple(active.shape)}; expected {expected}")


@law("selection")
def check_exactly_k_are_active(build: SelectionSubject) -> None:
    """A rule that says so marks exactly ``num_active`` mechanisms, also of NaN and equal scores."""
    selection = make(build)
    relevance = _relevance(selection)
    relevance[0, 0], relevance[:, 1], relevance[:, 2] = torch.nan, torch.nan, 1.0
    counts = selection.choose(relevance).active.sum(dim=0)
    most = int(counts.max())
    require(most <= selection.num_active, f"{most} mechanisms are active, and num_active={selection.num_active}")
    if selection.is_exact:
        require(
            int(counts.min()) == selection.num_active,
            f"{int(counts.min())} mechanisms are active, and num_active={selection.num_active}",
        )


@law("selection")
def check_gate_is_between_0_and_1(build: SelectionSubject) -> None:
    """The gate is in [0, 1], and 0 where a mechanism is inactive."""
    selection = make(build)
    choice = selection.choose(_relevance(selection))
    if choice.gate is None:
        raise SkipTest("no gate")
    low, high = float(choice.gate.min()), float(choice.gate.max())
    require(low >= 0 and high <= 1, f"gates are between {low:.6g} and {high:.6g}; expected 0 to 1")
    outside = choice.gate[~choice.active].abs().sum().item()
    require(outside == 0, f"the gates of inactive mechanisms sum to {outside:.6g}; expected 0")


@law("selection")
def check_a_constant_offset_changes_nothing(build: SelectionSubject) -> None:
    """An offset that is the same for all mechanisms leaves the ranking as it is."""
    selection = make(build)
    if not selection.is_exact:
        raise SkipTest("the number of active mechanisms depends on the height of the scores")
    relevance = _relevance(selection)
    offset = torch.full((selection.num_mechanisms, 1), 0.75, dtype=relevance.dtype)
    require_close("active", selection.choose(relevance, offset).active, selection.choose(relevance).active)


@law("selection")
def check_minus_infinity_is_never_active(build: SelectionSubject) -> None:
    """A mechanism whose offset is −∞ is inactive, also where too few others are left."""
    selection = make(build)
    relevance = _relevance(selection)
    offset = torch.zeros(selection.num_mechanisms, 1, dtype=relevance.dtype)
    offset[1:] = -torch.inf
    active = selection.choose(relevance, offset).active
    require(not bool(active[1:].any()), "a mechanism with an offset of −∞ is active")


@law("selection")
def check_permuting_mechanisms_permutes_the_choice(build: SelectionSubject) -> None:
    """Where no scores tie, the order of mechanisms and samples does not matter."""
    selection = make(build)
    relevance = _relevance(selection)
    order, samples = torch.randperm(selection.num_mechanisms), torch.randperm(BATCH)
    choice, permuted = selection.choose(relevance), selection.choose(relevance[order][:, samples])
    require_close("active", permuted.active, choice.active[order][:, samples])
    if choice.gate is not None and permuted.gate is not None:
        require_close("gate", permuted.gate, choice.gate[order][:, samples])


@law("selection")
def check_nan_leaves_other_samples_alone(build: SelectionSubject) -> None:
    """A NaN in one sample changes the choice in no other."""
    selection = make(build)
    relevance = _relevance(selection)
    expected = selection.choose(relevance)
    relevance[0, 0] = torch.nan
    found = selection.choose(relevance)
    require_close("active", found.active[:, 1:], expected.active[:, 1:])
    if expected.gate is not None:
        require_close("gate", found.gate[:, 1:], expected.gate[:, 1:])


@law("selection")
def check_update_is_continuous(build: SelectionSubject) -> None:
    """Where the rule says so: how far each mechanism moves does not jump where ranks change."""
    selection = make(build)
    if not selection.is_continuous:
        raise SkipTest("the rule is not continuous")
    steps = 4001
    start, end = (_relevance(selection, 2)[:, [index]] for index in (0, 1))
    path = torch.lerp(start, end, torch.linspace(0, 1, steps, dtype=start.dtype))  # one sample for each small step
    choice = selection.choose(path)
    moves = choice.active.to(path.dtype) if choice.gate is None else choice.gate
    flips = int((choice.active[:, 1:] != choice.active[:, :-1]).sum())
    jump = float((moves[:, 1:] - moves[:, :-1]).abs().max())
    most = 200 / steps  # in proportion to the step
    require(jump < most, f"a gate jumps by {jump:.4g} in a step of 1/{steps}, over {flips} changes of rank")


@law("selection")
def check_gate_has_the_gradient_of_its_differences(build: SelectionSubject) -> None:
    """With the choice held, the gates' gradient is that of finite differences."""
    selection = make(build)
    relevance = _relevance(selection, 3).requires_grad_()
    choice = selection.choose(relevance)
    if choice.gate is None or not choice.gate.requires_grad:
        raise SkipTest("no gate with a gradient")
    held = torch.autograd.gradcheck(lambda r: selection.choose(r).gate, relevance, raise_exception=False)
    require(held, "the gradient of the gates is not that of finite differences")


class _Ran(NamedTuple):
    rim: RIM
    features: Tensor
    state: State
    activities: list[Activity]
    resets: Tensor


def _run(build: RIMSubject, loop: str | None = None, *, train: bool = False) -> "_Ran":
    """Run a RIM in float64 over random inputs from a random state, with resets."""
    rim = make(build)
    if loop is not None:
        rim.backend = loop
    rim = rim.double().train(train)
    generator = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for parameter in rim.parameters():
            parameter.copy_(parameter * 1.7)
    state: State = map_state(lambda part: numbers(*part.shape), rim.initial_state(4))
    resets = numbers(4, 6) > 1
    torch.manual_seed(2)
    with rim.record_activity() as activities:
        features, last = rim(numbers(4, 6, rim.input_size), state, resets)
    return _Ran(rim, features, last, activities, resets)


def _of_same_weights(build: RIMSubject) -> Callable[[], RIM]:
    torch.manual_seed(0)
    rim = make(build)
    return lambda: make(rim)


@law("rim")
def check_inactive_mechanisms_keep_their_state(build: RIMSubject) -> None:
    """The hidden state of an inactive mechanism is bit for bit what it was."""
    rim, features, _, activities, resets = _run(build)
    states = features.view(*features.shape[:2], rim.num_mechanisms, -1)
    for step in range(1, states.shape[1]):
        kept = ~activities[-1].active[:, step]
        before, after = states[:, step - 1], states[:, step]
        is_moved = (before != after).any(dim=-1) & kept
        # a reset replaces the state before the step
        is_moved &= ~resets[:, step, None]
        require(not bool(is_moved.any()), f"an inactive mechanism moved in step {step}")


@law("rim")
def check_dropout_never_changes_the_first_choice(build: RIMSubject) -> None:
    """Dropout does not reach the scores of a step, so that the first step has the same active mechanisms."""
    same = _of_same_weights(build)
    if _first(same()).is_noisy:
        raise SkipTest("the ranking of training is noisy")
    evaluated, trained = _run(same).activities, _run(same, train=True).activities
    require_close("active", trained[0].active[:, 0], evaluated[0].active[:, 0])


@law("rim")
def check_only_training_is_followed(build: RIMSubject) -> None:
    """A forward in evaluation or without gradients has no penalty and changes nothing that is saved."""
    rim = make(build).double()
    before = _saved(rim)
    for mode, has_gradients in ((False, True), (True, False)):
        with torch.set_grad_enabled(has_gradients):
            rim.train(mode)(_inputs(rim))
        require(rim.penalty() is None, "there is a penalty after a forward that trains nothing")
    require_close("saved", _saved(rim), before, rtol=0, atol=0)


@law("rim")
def check_a_saved_rim_trains_on_alike(build: RIMSubject) -> None:
    """Saved between two optimiser steps and loaded, the steps that follow are bit for bit the same."""
    same = _of_same_weights(build)
    rim, loaded = same().double().train(), same().double().train()

    def train_on(rim: RIM) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(3)
        for _ in range(3):
            features, _ = rim(_inputs(rim))
            penalty = rim.penalty()
            is_scalar = penalty is None or (penalty.dim() == 0 and bool(penalty.isfinite()))
            require(is_scalar, f"the penalty is {penalty}; expected a finite scalar or None")
            rim.after_step(0.5)
        return features.detach(), _saved(rim)

    train_on(rim)
    loaded.load_state_dict(rim.state_dict())
    require_close("trained on", train_on(loaded), train_on(rim), rtol=0, atol=0)


def _inputs(rim: RIM) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(3, 5, rim.input_size, generator=generator, dtype=torch.float64)


def _saved(rim: RIM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in rim.state_dict().items()}


@law("rim")
def check_loops_that_can_equal_eager(build: RIMSubject) -> None:
    """Every time loop that says it can run the RIM gives what ``eager`` gives, in outputs and all gradients."""
    same = _of_same_weights(build)
    expected: Any = None
    names = ["eager", *(name for name in LOOPS if name not in ("eager", "triton"))]
    for name in names:
        rim = same()
        where = Where(torch.device("cpu"), torch.float64)
        if LOOPS[name].cannot(_first(rim), where) is not None:
            continue
        rim, features, last, activities, _ = _run(same, name, train=True)
        torch.autograd.backward(weighted_sum(features))
        gradients = {key: parameter.grad for key, parameter in rim.named_parameters()}
        found = features.detach(), tuple(last), [activity.active for activity in activities], gradients
        if expected is None:
            expected = found
        require_close(f"result of {name}", found, expected, rtol=1e-8, atol=1e-10)


@law("rim")
def check_loops_that_cannot_are_named_once(build: RIMSubject) -> None:
    """``auto`` logs once which loop it takes, and why the faster ones cannot."""
    rim = make(build)
    rim.backend = "auto"
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("rimlit")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        inputs = torch.zeros(2, 3, rim.input_size)
        rim(inputs), rim(inputs)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    name, reason = rim.resolve_backend()
    announced = [text for text in records if text.startswith("RIM time loop")]
    require(announced == [f"RIM time loop: {name} ({reason})."], f"what was logged is {announced}")
    for other, loop in LOOPS.items():
        if other == name:
            break
        why = loop.cannot(_first(rim), Where.of(next(rim.parameters())))
        require(why is not None and why in reason, f"{other} was passed over, and the log does not say why")
