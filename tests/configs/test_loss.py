"""What the settings of loss and advantages allow: every option does something, or is refused with the reason."""

from dataclasses import replace

import pytest

from rlt_jax.configs import PRESETS, AdvantagesConfig, LossConfig, check_config
from rlt_jax.configs.loss import advantages_problems, loss_problems
from rlt_jax.errors import UserError
from rlt_jax.losses import IGNORED

CISPO = {"kind": "cispo", "epsilon_high": 5.0}


def test_the_defaults_and_every_kind_by_itself_are_fine():
    assert list(loss_problems(LossConfig())) == []
    assert list(advantages_problems(AdvantagesConfig())) == []
    for kind in IGNORED:
        assert list(loss_problems(LossConfig(**(CISPO if kind == "cispo" else {"kind": kind})))) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1.0}, "loss.beta=-1: expected 0 or a positive number"),
        ({"epsilon_low": 0.0}, "loss.epsilon_low=0: expected a positive number, or None"),
        ({"epsilon_low": 1.0}, "loss.epsilon_low=1: expected less than 1"),
        ({"epsilon_low": None, "epsilon_high": 0.2}, "loss.epsilon_high=0.2 with loss.epsilon_low=None: give both"),
        ({"kind": "cispo"}, "loss.kind=cispo without loss.epsilon_high"),
        ({**CISPO, "delta": 9.0}, "loss.delta=9 has no effect with loss.kind=cispo"),
        ({"delta": 1.1}, "loss.delta=1.1: expected more than 1 + epsilon_high"),
        ({"delta": 2.0, "epsilon_low": None}, "loss.delta=2: expected more than 1 + epsilon_high, with epsilon_high"),
        ({"kind": "vespo", "level": "sequence"}, "loss.level=sequence has no effect with loss.kind=vespo"),
        ({"kind": "gmpo", "level": "sequence"}, "loss.level=sequence has no effect with loss.kind=gmpo"),
        ({"beta": 0.0, "kl_kind": "k2"}, "loss.kl_kind has no effect with loss.beta=0"),
        ({"beta": 0.0, "kl_in": "reward"}, "loss.kl_in has no effect with loss.beta=0"),
        ({"kl_in": "reward", "kl_bias_correction": True}, "loss.kl_bias_correction has no effect with loss.kl_in"),
        ({"kind": "gmpo", "kl_bias_correction": True}, "loss.kl_bias_correction has no effect with loss.kind=gmpo"),
        ({"kind": "gmpo", "importance_correction": "token"}, "loss.importance_correction=token has no effect"),
        ({"importance_cap": 0.0}, "loss.importance_cap=0: expected a positive number"),
        ({"importance_correction": "token", "importance_floor": 3.0}, "loss.importance_floor=3: expected"),
        ({"importance_outside": "mask"}, "loss.importance_outside has no effect with loss.importance_correction=none"),
        ({"kind": "sapo", "sapo_temperature_neg": 0.0}, "loss.sapo_temperature_neg=0: expected a temperature above 0"),
        ({"kind": "vespo", "vespo_k_pos": -1.0}, "loss.vespo_k_pos=-1: expected 0 or a positive number"),
        ({"top_entropy_quantile": 0.0}, "loss.top_entropy_quantile=0: expected a share above 0"),
        ({"off_policy_threshold": -0.1}, "loss.off_policy_threshold=-0.1: expected 0 or a positive number of nats"),
        ({"sapo_temperature_pos": 2.0}, "loss.sapo_temperature_pos has no effect with loss.kind=grpo"),
        ({"vespo_lambda_neg": 1.0, "kind": "dapo"}, "loss.vespo_lambda_neg has no effect with loss.kind=dapo"),
    ],
)
def test_what_is_wrong_or_has_no_effect_is_refused(settings, message):
    (problem,) = loss_problems(LossConfig(**settings))
    assert message in problem


def test_of_normalised_terms_no_other_scale_is_asked_for():
    terms = "normalize_then_sum"
    assert list(advantages_problems(AdvantagesConfig(aggregation=terms))) == []
    (problem,) = advantages_problems(AdvantagesConfig(aggregation=terms, scale="none"))
    assert "advantages.scale=none has no effect with advantages.aggregation=normalize_then_sum" in problem


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (3, "num_minibatches=3 does not divide the 8 questions of a draw (train_batch_size / num_generations), whose "),
        (0, "num_minibatches=0: expected a positive whole number"),
    ],
)
def test_parts_of_a_draw_are_whole_groups(parts, message):
    config = replace(PRESETS["tiny"], output_dir="x", num_minibatches=parts)
    with pytest.raises(UserError) as refused:
        check_config(config)
    assert message in str(refused.value)
    if parts == 3:
        assert "use one of 1, 2, 4, 8" in str(refused.value)
