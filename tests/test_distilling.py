import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.distilling import Features, SoftTargets, attention_map


def outputs(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_soft_targets_by_hand() -> None:
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p = 1 / (1 + math.exp(1))  # of the teacher's first class at a temperature of 2
    wanted = 4 * (p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p))
    assert SoftTargets(temperature=2).loss(student, teacher).item() == pytest.approx(wanted)


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 6)])
def test_soft_targets_are_a_cross_entropy_less_the_teachers_entropy(shape) -> None:
    student, teacher = outputs(*shape)
    wanted = F.softmax(teacher / 3, 1)
    cross = F.cross_entropy(student / 3, wanted)
    entropy = -(wanted * wanted.log()).sum(1).mean()
    torch.testing.assert_close(SoftTargets(3).loss(student, teacher), 9 * (cross - entropy))


def test_the_gradient_is_that_of_the_weighted_loss() -> None:
    student, teacher = outputs(5, 4)
    value, gradient = SoftTargets(2, weight=0.3).gradient(student, teacher)
    own = student.clone().requires_grad_()
    loss = 0.3 * 4 * F.kl_div(F.log_softmax(own / 2, 1), F.softmax(teacher / 2, 1), reduction="batchmean")
    loss.backward()
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(gradient, own.grad)
    assert not student.requires_grad


def test_a_student_with_fewer_channels_can_look_where_the_teacher_looks() -> None:
    teacher = torch.zeros(1, 4, 2, 2)
    teacher[0, :, 0, 0] = 3.0
    same = torch.zeros(1, 2, 2, 2)
    same[0, 1, 0, 0] = 0.5
    other = same.flip(-1)
    loss = Features("layer", weight=1.0)
    assert loss.loss(same, teacher).item() == pytest.approx(0)
    assert loss.loss(other, teacher).item() == pytest.approx(2)  # two places, each wrong by one


def test_attention_maps_of_images_and_of_sequences() -> None:
    features = torch.randn(2, 3, 4, 5)
    maps = attention_map(features)
    assert maps.shape == (2, 20)
    torch.testing.assert_close(maps.norm(dim=1), torch.ones(2))
    tokens = features.flatten(2).transpose(1, 2)  # (N, positions, C)
    torch.testing.assert_close(attention_map(tokens), maps)


@pytest.mark.parametrize("loss", [SoftTargets(), Features("x")], ids=str)
def test_outputs_that_do_not_compare(loss) -> None:
    with pytest.raises(ValueError, match=r"cannot compare outputs of shape \(2, 3\) with \(2, 4\) of the teacher"):
        loss.loss(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftTargets(temperature=0), "SoftTargets temperature=0 must be a finite number above 0"),
        (lambda: SoftTargets(weight=1.5), r"SoftTargets weight=1.5 must be a number in \[0, 1\]"),
        (lambda: Features("x", weight=-1), "Features weight=-1 must be a finite number of at least 0"),
    ],
)
def test_arguments(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
