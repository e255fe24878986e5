"""What --loss auto takes, what a run says of it, and what a run of before goes on with."""

import pytest
import yaml

from local_distill.announcements import loss_in_words, off_policy_note
from local_distill.batch import TeacherView
from local_distill.config.lookup import LOSSES
from local_distill.config.resumed import as_begun
from local_distill.config.train_config import TrainConfig
from local_distill.config.train_fields import recorded_loss
from local_distill.errors import UserError

SELF = {"teacher_backend": "self", "teacher_model": "", "use_lora": True}


def config(**settings):
    return TrainConfig(**{"student_model": "s", "teacher_model": "t", **settings})


@pytest.mark.parametrize(
    ("settings", "name", "top_k", "needs", "why"),
    [
        ({}, "reverse_kl", None, TeacherView.whole_distribution, "every token, exact"),
        ({"teacher_offload": "cpu"}, "reverse_kl", None, TeacherView.whole_distribution, "whole distribution"),
        ({"teacher_quantization": "4bit"}, "reverse_kl", None, TeacherView.whole_distribution, "whole distribution"),
        (SELF, "reverse_kl", None, TeacherView.whole_distribution, "whole distribution"),
        ({"top_k": 5}, "reverse_kl", 5, TeacherView.top_tokens, "the 5 top tokens of --top_k"),
        ({"teacher_ds_zero3": True}, "reverse_kl", 64, TeacherView.top_tokens, "64 likeliest tokens"),
        ({"teacher_url": "http://u"}, "reverse_kl", 64, TeacherView.top_tokens, "64 likeliest tokens"),
        ({"teacher_url": "http://u", "top_k": 9}, "reverse_kl", 9, TeacherView.top_tokens, "9 likeliest tokens"),
        ({"kl_discount": 0.9}, "policy_gradient", None, TeacherView.tokens, "--kl_discount 0.9"),
    ],
)
def test_the_least_noise_that_the_teacher_allows(settings, name, top_k, needs, why):
    found = config(**settings)
    assert (found.loss, found.loss_name, found.loss_top_k) == ("auto", name, top_k)
    assert LOSSES.get(name).needs(found) == needs
    assert why in loss_in_words(found)
    assert loss_in_words(found).endswith(" (--loss auto)")
    assert ("exact" in loss_in_words(found)) == (name == "reverse_kl" and top_k is None)
    assert off_policy_note(found) == ""
    assert recorded_loss(vars(found)) == found.loss_in_words
    assert found.loss_in_words.startswith(f"auto ({name}")


def test_a_loss_that_is_named_is_taken_as_it_is():
    named = config(loss="policy_gradient", teacher_ds_zero3=True, temperature=0.8)
    assert (named.loss_name, named.loss_top_k, named.loss_in_words) == ("policy_gradient", None, "policy_gradient")
    assert loss_in_words(named) == "policy_gradient"
    assert "not quite the student's own" in off_policy_note(named)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio_cap": 2.0}, "--ratio_cap: given with --loss auto.*importance_sampling"),
        ({"ppo_clip": 0.1}, "--ppo_clip: given with --loss auto.*--loss ppo"),
        ({"jsd_beta": 0.1}, "--jsd_beta: given with --loss auto.*--loss jsd"),
        ({"kl_discount": 0.5, "top_k": 4}, "--top_k: given with --loss policy_gradient .auto, with --kl_discount."),
        ({"teacher_ds_zero3": True, "top_k_support": "student"}, "--loss auto: .*cannot hand over its whole"),
        ({"loss": "revers_kl"}, "--loss revers_kl: unknown; needs one of policy_gradient"),
        ({"loss": "no.such.module:LOSS"}, "--loss no.such.module:LOSS: no.such.module cannot be imported"),
        ({"loss": "math:tau_of_nothing"}, "--loss math:tau_of_nothing: math has no tau_of_nothing"),
        ({"loss": "math:pi"}, "--loss math:pi: a float, needs to be a LossRecord"),
    ],
)
def test_what_no_loss_can_use_is_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        config(**settings)
    assert "\n" not in str(caught.value)


def test_a_run_of_before_keeps_its_objective(tmp_path):
    recorded = {"loss": "policy_gradient", "temperature": 0.8, "top_p": 0.95}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(recorded))
    resumed = config(output_dir=str(tmp_path), resume="latest")
    kept = as_begun(resumed)
    assert (kept.loss, kept.temperature, kept.top_p) == ("policy_gradient", 0.8, 0.95)
    assert as_begun(config(output_dir=str(tmp_path))).loss == "auto", "another run in its folder"
    named = as_begun(config(output_dir=str(tmp_path), resume="latest", loss="jsd"))
    assert (named.loss, named.temperature) == ("jsd", 1.0)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**recorded, "loss": "auto"}))
    assert as_begun(resumed).temperature == 1.0


@pytest.mark.parametrize("cut", ["loss:\n", "loss: jsd\ntemperature:\n"])
def test_a_record_that_was_cut_off_is_read_as_far_as_it_goes(cut, tmp_path):
    (tmp_path / "config.yaml").write_text(cut)
    kept = as_begun(config(output_dir=str(tmp_path), resume="latest"))
    assert (kept.loss, kept.temperature) == ("jsd" if "jsd" in cut else "auto", 1.0)
