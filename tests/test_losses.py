"""The losses, number by number: double Q-learning, Huber, and eqs. (1)-(3) of the paper."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.losses import (
    combined_loss,
    double_q_td_error,
    gradient_cosine,
    pretext_loss,
    td_loss,
)

LOG = math.log

# Two transitions with three actions. The online network (selector) prefers action 0, then 2;
# the target network values those at 10 and 20. 99 stands wherever a wrong index would read.
Q_TM1 = [[99.0, 3.0, 99.0], [5.0, 99.0, 99.0]]
A_TM1 = [1, 0]
R_T = [1.0, -1.0]
DISCOUNT_T = [0.5, 0.9]
Q_T_SELECTOR = [[2.0, 1.0, 0.0], [1.0, 2.0, 3.0]]
Q_T_VALUE = [[10.0, 99.0, 99.0], [99.0, 99.0, 20.0]]


def transitions() -> dict[str, Tensor]:
    """The two transitions above as fresh tensors; all floats require gradients."""
    floats = {
        "q_tm1": Q_TM1,
        "r_t": R_T,
        "discount_t": DISCOUNT_T,
        "q_t_value": Q_T_VALUE,
        "q_t_selector": Q_T_SELECTOR,
    }
    tensors = {name: torch.tensor(rows, requires_grad=True) for name, rows in floats.items()}
    return {**tensors, "a_tm1": torch.tensor(A_TM1)}


# Double Q-learning


def test_double_q_bootstraps_with_target_value_of_online_argmax() -> None:
    td_error = double_q_td_error(**transitions())
    # 1 + 0.5 * 10 - 3 and -1 + 0.9 * 20 - 5
    torch.testing.assert_close(td_error, torch.tensor([3.0, 12.0]))


def test_single_q_learning_is_the_target_network_as_its_own_selector() -> None:
    batch = transitions()
    td_error = double_q_td_error(**{**batch, "q_t_selector": batch["q_t_value"]})
    # max_a q_t_value is 99 in both rows: 1 + 0.5 * 99 - 3 and -1 + 0.9 * 99 - 5
    torch.testing.assert_close(td_error, torch.tensor([47.5, 83.1]))


def test_double_q_does_not_bootstrap_where_discount_is_zero() -> None:
    batch = transitions()
    td_error = double_q_td_error(**{**batch, "discount_t": torch.tensor([0.0, 0.9])})
    torch.testing.assert_close(td_error, torch.tensor([1.0 - 3.0, 12.0]))


def test_td_error_sends_gradient_only_into_q_tm1_of_the_taken_action() -> None:
    batch = transitions()
    double_q_td_error(**batch).sum().backward()
    assert batch["q_tm1"].grad is not None
    assert batch["q_tm1"].grad.tolist() == [[0, -1, 0], [-1, 0, 0]]
    for name in ("r_t", "discount_t", "q_t_value", "q_t_selector"):
        assert batch[name].grad is None, name


def test_double_q_equals_a_slow_loop_over_the_batch(generator: torch.Generator) -> None:
    q_tm1, q_t_value, q_t_selector = torch.randn(3, 50, 6, generator=generator)
    r_t, discount_t = torch.rand(2, 50, generator=generator)
    a_tm1 = torch.randint(6, (50,), generator=generator)
    slow = []
    for i in range(50):
        preferences = q_t_selector[i].tolist()
        best = preferences.index(max(preferences))
        target = r_t[i] + discount_t[i] * q_t_value[i, best]
        slow.append(float(target - q_tm1[i, a_tm1[i]]))
    fast = double_q_td_error(q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector)
    torch.testing.assert_close(fast, torch.tensor(slow))


def test_reward_1_forever_is_worth_1_over_1_minus_gamma() -> None:
    gamma = 0.9
    q = torch.full((1, 2), 1 / (1 - gamma))
    one, discount_t = torch.ones(1), torch.full((1,), gamma)
    td_error = double_q_td_error(q, torch.tensor([0]), one, discount_t, q, q)
    torch.testing.assert_close(td_error, torch.zeros(1), atol=1e-5, rtol=0)


# Huber loss with importance weights


@pytest.mark.parametrize(
    ("error", "loss", "slope"),
    [
        (0.0, 0.0, 0.0),
        (0.5, 0.125, 0.5),  # d**2 / 2
        (-0.5, 0.125, -0.5),
        (1.0, 0.5, 1.0),  # both branches agree
        (3.0, 2.5, 1.0),  # |d| - 1/2
        (-3.0, 2.5, -1.0),  # "error clipping": the slope is never steeper than 1
    ],
)
def test_huber_is_a_parabola_up_to_1_and_straight_after_it(
    error: float, loss: float, slope: float
) -> None:
    td_error = torch.tensor([error], requires_grad=True)
    value = td_loss(td_error, torch.ones(1))
    value.backward()
    assert value.item() == loss
    assert td_error.grad is not None
    assert td_error.grad.item() == slope


def test_td_loss_weighs_each_error_and_divides_by_the_batch_not_by_the_weights() -> None:
    td_error = torch.tensor([0.5, 1.0, -3.0, 2.0])  # Huber: 0.125, 0.5, 2.5, 1.5
    weights = torch.tensor([1.0, 0.5, 0.2, 0.0])
    assert td_loss(td_error, weights).item() == pytest.approx((0.125 + 0.25 + 0.5 + 0) / 4)


def test_descending_the_td_loss_moves_the_prediction_towards_the_target() -> None:
    batch = transitions()  # both errors are above 0: the predictions are too low
    td_loss(double_q_td_error(**batch), torch.ones(2)).backward()
    assert batch["q_tm1"].grad is not None
    assert batch["q_tm1"].grad.tolist() == [[0, -0.5, 0], [-0.5, 0, 0]]


# Eq. (2): the pretext loss


def test_pretext_loss_is_the_mean_cross_entropy_by_hand() -> None:
    # softmax of (ln 3, 0) is (3/4, 1/4); of (0, 0) it is (1/2, 1/2)
    logits = torch.tensor([[LOG(3), 0.0], [LOG(3), 0.0], [0.0, 0.0]])
    expected = (-LOG(3 / 4) - LOG(1 / 4) - LOG(1 / 2)) / 3
    assert pretext_loss(logits, torch.tensor([0, 1, 1])).item() == pytest.approx(expected)


def test_pretext_loss_of_an_ignorant_head_is_the_log_of_the_number_of_classes() -> None:
    assert pretext_loss(torch.zeros(5, 4), torch.tensor([0, 1, 2, 3, 0])).item() == pytest.approx(
        LOG(4)
    )


def test_pretext_loss_is_the_mean_over_the_usable_samples_only() -> None:
    logits = torch.tensor([[LOG(3), 0.0], [99.0, -99.0], [0.0, 0.0], [-99.0, 99.0]])
    y_hat = torch.tensor([0, 1, 1, 0])  # the rows of 99 are as wrong as can be
    usable = torch.tensor([True, False, True, False])
    expected = (-LOG(3 / 4) - LOG(1 / 2)) / 2
    assert pretext_loss(logits, y_hat, usable).item() == pytest.approx(expected)


def test_pretext_loss_and_its_gradient_equal_those_of_the_usable_subset(
    generator: torch.Generator,
) -> None:
    logits = torch.randn(40, 6, generator=generator)
    y_hat = torch.randint(6, (40,), generator=generator)
    usable = torch.rand(40, generator=generator) < 0.3
    assert 0 < usable.sum() < 40

    masked, subset = (logits.clone().requires_grad_() for _ in range(2))
    ours = pretext_loss(masked, y_hat, usable)
    plain = F.cross_entropy(subset[usable], y_hat[usable])
    torch.testing.assert_close(ours, plain)

    (gradient,) = torch.autograd.grad(ours, masked)
    (expected,) = torch.autograd.grad(plain, subset)
    torch.testing.assert_close(gradient, expected)
    assert not gradient[~usable].any()


def test_pretext_loss_with_every_sample_usable_is_the_loss_without_a_mask(
    generator: torch.Generator,
) -> None:
    logits = torch.randn(8, 4, generator=generator)
    y_hat = torch.randint(4, (8,), generator=generator)
    torch.testing.assert_close(
        pretext_loss(logits, y_hat, torch.ones(8, dtype=torch.bool)), pretext_loss(logits, y_hat)
    )


def test_pretext_loss_is_zero_with_zero_gradients_where_no_sample_is_usable() -> None:
    logits = torch.tensor([[99.0, 0.0], [1.0, 2.0]], requires_grad=True)
    loss = pretext_loss(logits, torch.tensor([1, 0]), torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0, 0], [0, 0]]


def test_pretext_loss_is_computed_in_float32_whatever_the_logits_are() -> None:
    logits, y_hat = torch.tensor([[0.5, -1.0, 0.25]]), torch.tensor([2])  # exact in bfloat16
    loss = pretext_loss(logits.bfloat16(), y_hat)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, pretext_loss(logits, y_hat))


# Eq. (3): the sum


@pytest.mark.parametrize(("aux_weight", "total"), [(1.0, 5.0), (0.5, 3.5), (0.0, 2.0)])
def test_combined_loss_is_supervised_plus_weight_times_pretext(
    aux_weight: float, total: float
) -> None:
    assert combined_loss(torch.tensor(2.0), torch.tensor(3.0), aux_weight).item() == total


def test_combined_loss_at_weight_0_leaves_the_pretext_loss_out() -> None:
    # 0 * nan would be nan
    assert combined_loss(torch.tensor(2.0), torch.tensor(math.nan), 0.0).item() == 2


def shared_backbone_gradients(aux_weight: float | None) -> list[Tensor]:
    """Gradients of f and g after eq. (3) on fixed data; None: plain supervised training."""
    torch.manual_seed(0)
    f, g, h = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(7, 4)
    features = torch.relu(f(torch.randn(16, 5)))
    loss = F.cross_entropy(g(features), torch.randint(3, (16,)))
    if aux_weight is not None:
        pretext = pretext_loss(h(features), torch.randint(4, (16,)))
        loss = combined_loss(loss, pretext, aux_weight)
    return list(torch.autograd.grad(loss, [*f.parameters(), *g.parameters()]))


def test_weight_0_gives_gradients_bit_equal_to_plain_supervised_training() -> None:
    plain, zero, one = (shared_backbone_gradients(weight) for weight in (None, 0.0, 1.0))
    assert all(torch.equal(a, b) for a, b in zip(plain, zero, strict=True))
    assert not torch.equal(plain[0], one[0])  # f learns from the pretext task
    assert torch.equal(plain[2], one[2])  # g does not


def test_combined_loss_refuses_a_negative_weight() -> None:
    expected = r"^aux_weight must be 0 or more, got -0\.5\. Use 0 to switch it off\.$"
    with pytest.raises(ValueError, match=expected):
        combined_loss(torch.tensor(1.0), torch.tensor(1.0), -0.5)


# Conflicting gradients


@pytest.mark.parametrize(
    ("second", "cosine"),
    [
        ([[6.0, 0.0], [8.0]], 1.0),  # the same direction, twice as long
        ([[-3.0, 0.0], [-4.0]], -1.0),
        ([[0.0, 5.0], [0.0]], 0.0),
        ([[4.0, 0.0], [-3.0]], 0.0),  # orthogonal only over both tensors together
        ([[5.0, 0.0], [0.0]], 0.6),
        ([[0.0, 0.0], [0.0]], 0.0),
    ],
)
def test_gradient_cosine_is_that_of_all_tensors_as_one_vector(
    second: list[list[float]], cosine: float
) -> None:
    first = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    assert gradient_cosine(first, [torch.tensor(g) for g in second]).item() == pytest.approx(cosine)


def test_gradient_cosine_takes_matrices_and_low_precision() -> None:
    first = [torch.ones(2, 3, dtype=torch.bfloat16), torch.zeros(4)]
    cosine = gradient_cosine(first, [torch.full((2, 3), 7.0), torch.zeros(4)])
    assert cosine.dtype == torch.float32
    assert cosine.item() == pytest.approx(1)
