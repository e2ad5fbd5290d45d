"""Adaptive augmentation of a critic: what p follows, what the critic sees, and that a generator is not taught the changes."""

import pytest
import torch
from torch import nn

from medgen.checkpoint import resolve
from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.model import Example
from medgen.core.random import Rng
from medgen.data.augment.changes import Changes
from medgen.data.augment.geometry import Flip
from medgen.data.augment.intensity import Noise
from medgen.models.ada import Adaptive
from medgen.models.adversarial import NonSaturating
from medgen.models.gan import GAN

FLIP = Changes({"flip": Flip([0], probability=1.0)})


class Made(nn.Module):
    """A generator with one parameter per voxel."""

    def __init__(self, size=(4, 5)):
        super().__init__()
        self.image = nn.Parameter(torch.linspace(-1, 1, 20).reshape(1, 1, *size))

    def forward(self, z, condition, size):
        return self.image.repeat(len(z), 1, 1, 1)


class FirstRow(nn.Module):
    """A critic that sees the first row only, and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.scale, self.shown = nn.Parameter(torch.ones(())), []

    def forward(self, x, condition):
        self.shown.append((x.detach(), condition))
        return self.scale * x[:, :, 0]


def signs(ada, *values):
    for value in values:
        ada.after_step({"sign": torch.tensor(value)})
    return float(ada.p)


def test_p_follows_the_sign_of_the_critic_on_real_images():
    ada = Adaptive(FLIP, target=0.6, steps=40, every=4)
    assert signs(ada, 0.9, 0.9, 0.9) == 0.0  # not before four steps
    assert signs(ada, 0.9) == pytest.approx(0.1)
    assert signs(ada, 0.9, 0.1, 0.9, 0.9) == pytest.approx(0.2)  # mean 0.7
    assert signs(ada, 0.9, 0.1, 0.1, 0.9) == pytest.approx(0.1)  # mean 0.5
    assert signs(ada, *[0.0] * 12) == 0.0 and signs(ada, *[1.0] * 60) == 1.0  # 0 and 1 are the ends
    assert signs(ada, float("nan"), *[0.0] * 4) == pytest.approx(0.9)


def test_a_critic_that_overfits_is_answered_and_p_settles_where_its_sign_is_the_target():
    ada, sign = Adaptive(FLIP, target=0.6, steps=200, every=2), []
    for _ in range(400):  # a critic whose confidence falls with p
        sign.append(1 - float(ada.p))
        ada.after_step({"sign": torch.tensor(sign[-1])})
    assert sum(sign[-100:]) / 100 == pytest.approx(0.6, abs=0.02)


def test_state_is_saved_in_the_middle_of_a_window():
    ada, other = (Adaptive(FLIP, steps=40, every=4) for _ in range(2))
    signs(ada, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0)
    other.load_state_dict(ada.state_dict())
    assert signs(ada, 0.0, 0.0) == signs(other, 0.0, 0.0) == 0.0


def gan(p, changes=FLIP):
    return GAN(Made(), FirstRow(), NonSaturating(), latent=2, ada=Adaptive(changes, start=p))


def test_the_critic_sees_changed_images_and_the_generator_learns_through_the_change():
    x = torch.arange(20.0).reshape(1, 1, 4, 5).repeat(3, 1, 1, 1)
    model, example = gan(1.0), Example(x, Condition())
    shared = model.begin(example, Rng(0, 0, range(3)))
    assert torch.equal(shared.image, model.generator.image.repeat(3, 1, 1, 1))  # what it makes is not changed itself
    model.critic_loss(example, shared)
    (real, _), (fake, _) = model.critic.shown
    assert torch.equal(real, x.flip(2)) and torch.equal(fake, shared.image.flip(2))
    model.generator_loss(example, shared).total.backward()
    moved = model.generator.image.grad[0, 0].abs().sum(1)
    assert moved[-1] > 0 and not moved[:-1].any()  # the critic's first row is the last one of the image
    assert torch.equal(model.sample(Condition(), (3, 1, 4, 5), Rng(0, 0, range(3))), shared.image)


def test_a_dense_condition_moves_with_the_image_and_keeps_its_values():
    x = torch.arange(20.0).reshape(1, 1, 4, 5).repeat(2, 1, 1, 1)
    model = gan(1.0, Changes({"flip": Flip([0], probability=1.0), "noise": Noise(sigma=0.5, probability=1.0)}))
    example = Example(x, Condition(dense=2 * x, vector=torch.ones(2, 1)))
    model.critic_loss(example, model.begin(example, Rng(0, 0, range(2))))
    for shown, condition in model.critic.shown:
        assert torch.equal(condition.dense, 2 * x.flip(2)) and torch.equal(condition.vector, torch.ones(2, 1))
        assert not torch.equal(shown, shown.round())


def test_at_zero_it_is_the_gan_without():
    x = torch.rand(3, 1, 4, 5)
    example, plain = Example(x, Condition()), GAN(Made(), FirstRow(), NonSaturating(), latent=2)
    losses = []
    for model in (gan(0.0), plain):
        shared = model.begin(example, Rng(0, 0, range(3)))
        losses.append((model.critic_loss(example, shared), model.generator_loss(example, shared)))
    for with_ada, without in zip(*losses, strict=True):
        assert torch.equal(with_ada.total, without.total)
    assert set(losses[0][0].terms) - set(losses[1][0].terms) == {"sign", "p"}
    assert float(losses[0][0].terms["sign"]) == 1.0  # all of x is positive


def test_bad_settings_are_refused():
    with pytest.raises(MedgenError, match=r"expected 0 <= start <= 1, .* found start=2"):
        Adaptive(FLIP, start=2)


def test_a_checkpoint_may_name_changes_and_nothing_else_of_the_data():
    assert resolve("medgen.data.augment.changes.Changes") is Changes
    for name in ("medgen.data.files.FileData", "medgen.data.augmented.Changes", "medgen.data.augment.changes.MedgenError"):
        with pytest.raises(MedgenError):
            resolve(name)
