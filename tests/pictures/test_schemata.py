"""Which schema drives which ball."""

import io
from functools import partial
from pathlib import Path

import torch

from rimlit.encoders import ConvolutionalEncoder
from rimlit.heads import MixtureHead
from rimlit.pictures import RolloutPictures
from rimlit.pictures.rollouts import predict_film
from rimlit.pictures.schemata import (
    NO_BALL,
    SchemaScene,
    draw_schemata,
    enlarge,
    owners_by_attention,
    schema_of_balls,
)
from tests.tasks.running import make_trainer, quiet
from tests.tasks.test_frame_prediction import make_data, make_task

pytestmark = quiet

SCHEMATA = {
    "class_path": "rimlit.backbones.RIM",
    "init_args": {
        "hidden_size": 12,
        "num_mechanisms": 3,
        "num_active": 2,
        "sharing": "shared",
        "cell": "schemata",
        "learn_initial_state": True,
    },
}


def scene() -> SchemaScene:
    """Two states, the left half of 4 × 4 pixels and the right one; state 1 is inactive in the last step."""
    owners = torch.tensor([0, 0, 1, 1]).expand(3, 4, 4)
    schema = torch.tensor([[0, 1], [0, 0], [1, NO_BALL]])
    positions = torch.tensor([[[0.5, 0.5], [3.9, 2.0], [9.0, 9.0]]] * 3)
    positions[1, 0] = torch.tensor([2.5, 0.5])  # the first ball crosses over
    return SchemaScene("balls_2", schema, 2, owners, positions, torch.tensor([1.5, 2.0, 0.0]))


def test_a_ball_has_the_schema_of_the_state_that_its_centre_belongs_to() -> None:
    assert schema_of_balls(scene()).tolist() == [[0, 1], [0, 0], [1, NO_BALL]]
    other = scene()._replace(schema=torch.tensor([[2, 1], [2, 1], [2, 1]]))
    assert schema_of_balls(other).tolist() == [[2, 1], [1, 1], [2, 1]]


def test_balls_outside_the_frame_belong_to_the_nearest_pixel() -> None:
    outside = scene()._replace(positions=torch.tensor([[[-3.0, -1.0], [7.0, 9.0]]] * 3), radii=torch.ones(2))
    assert schema_of_balls(outside)[0].tolist() == [0, 1]


def test_places_become_pixels() -> None:
    owners = torch.tensor([[0, 1, 2, 3]])
    assert enlarge(owners, 4)[0].tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    attention = torch.eye(4)[None]  # state n attends to position n
    found = owners_by_attention(attention, 4)
    assert found is not None and torch.equal(found, enlarge(owners, 4))
    assert owners_by_attention(torch.ones(1, 2, 3), 6) is None
    assert owners_by_attention(torch.ones(1, 2, 1), 6) is None


def test_the_figure_has_a_panel_of_states_and_one_of_balls() -> None:
    figure = draw_schemata([scene(), scene()._replace(owners=None)], "run")
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[0] == "balls 2: schema of each state"
    assert titles[1] == "balls 2: schema of the state that each ball belongs to"
    assert len(titles) == 3
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["1 (r 1.5)", "2 (r 2.0)"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["schema 0", "schema 1", "inactive"]
    figure.savefig(io.BytesIO())


def test_a_test_of_schemata_draws_them(tmp_path: Path) -> None:
    head = partial(MixtureHead, place_size=10, hidden_size=8)
    task, data = make_task(backbone=SCHEMATA, head=head, prediction="motion"), make_data()
    make_trainer(tmp_path, callbacks=[RolloutPictures()]).test(task, data, verbose=False)
    assert (tmp_path / "figures/schemata.png").read_bytes().startswith(b"\x89PNG")
    batch = next(iter(data.test_dataloader()[0]))
    film = predict_film(task, batch, "balls_2")
    assert film.scene is not None and film.owners is not None and film.active is not None
    assert film.owners.shape == film.truth.shape
    assert torch.equal(film.scene.schema == NO_BALL, ~film.active)
    torch.testing.assert_close(film.scene.positions, batch.positions[0, 1 : 1 + len(film.truth)])


def test_without_masks_attention_to_positions_says_whose_a_ball_is() -> None:
    encoder = partial(ConvolutionalEncoder, output_size=8, channels=[2, 3], position_wise=True)
    film = predict_film(
        make_task(backbone=SCHEMATA, encoder=encoder), next(iter(make_data().test_dataloader()[0])), ""
    )
    assert film.owners is None and film.scene is not None
    assert film.scene.owners is not None and film.scene.owners.shape == film.truth.shape
