"""Every field of a denoiser's configuration is checked when it is made."""

import inspect
import math

import pytest

from dblm_lib import configuration, denoiser

MIXTURE = {"head": "mixture", "loss": "ce"}


@pytest.mark.parametrize(
    "field",
    [
        "causal",
        "normalise_embeddings",
        "train_embeddings",
        "likelihood",
        "evidence",
        "shift",
    ],
)
@pytest.mark.parametrize("value", ["no", 0, 1, None, 0.0, "False"])
def test_a_switch_is_true_or_false(field, value):
    """The word "no" would switch it on."""
    with pytest.raises(TypeError, match=f"{field} is True or False; got"):
        denoiser.DBLMConfig(**{**MIXTURE, field: value})


@pytest.mark.parametrize(
    "field",
    ["embed_dim", "seq_len", "vocab_size", "n_positions", "n_embd", "n_layer"],
)
@pytest.mark.parametrize("value", [0, -1, 2.0, 2.5, True, "4", math.nan])
def test_a_size_is_a_whole_number(field, value):
    """A number that is not whole would fail deep inside, or be cut."""
    with pytest.raises(Exception, match=field) as caught:
        denoiser.DBLMConfig(**{field: value})
    assert isinstance(caught.value, (TypeError, ValueError)) or (
        "validation" in type(caught.value).__name__.lower()
    )


@pytest.mark.parametrize(
    "field", ["self_conditioning", "clean_rate", "stagger", "input_std"]
)
@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf, True, "0.5"])
def test_a_number_is_finite_and_not_negative(field, value):
    with pytest.raises(ValueError, match=f"{field}.*got {value!r}"):
        denoiser.DBLMConfig(**{**MIXTURE, field: value})


@pytest.mark.parametrize("field", ["conditioning", "head", "loss"])
@pytest.mark.parametrize("value", [None, 1, ["time"], "Time"])
def test_a_choice_is_one_of_those_there_are(field, value):
    with pytest.raises(ValueError, match=f"unknown {field}"):
        denoiser.DBLMConfig(**{field: value})


@pytest.mark.parametrize("field", ["schedule_options", "sampler"])
@pytest.mark.parametrize("value", [[("step", 1)], "step", 5])
def test_options_are_a_dictionary(field, value):
    with pytest.raises(TypeError, match=f"{field} must be a dictionary"):
        denoiser.DBLMConfig(**{field: value})


@pytest.mark.parametrize(
    "sampler, words",
    [
        ({"step": "euler"}, "ancestral, deterministic"),
        ({"step": None}, "step is one of"),
        ({"stagger": -1}, "stagger must be 0 or more"),
        ({"stagger": True}, "stagger must be 0 or more"),
        ({"power": 0}, "power must be positive"),
        ({"power": math.nan}, "power must be positive"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": "0.8"}, "temperature must be positive"),
        ({"likelihood_weight": math.inf}, "likelihood_weight must not"),
        ({"steps": 8}, "sampler has no steps"),
        ({3: 8}, "sampler has no 3"),
    ],
)
def test_a_sampler_is_checked_with_the_model(sampler, words):
    """Not only when the first text is sampled, after the training."""
    fields = {**MIXTURE, "likelihood": True}
    with pytest.raises(ValueError, match=words):
        denoiser.DBLMConfig(**fields, sampler=sampler)
    whole = {"step": "deterministic", "temperature": 0.8, "power": 2}
    kept = denoiser.DBLMConfig(**fields, sampler=whole)
    assert kept.sampler == whole


@pytest.mark.parametrize(
    "sampler, fields, words",
    [
        ({"temperature": 0.8}, {}, "has no temperature"),
        ({"likelihood_weight": 0.5}, MIXTURE, "no likelihood"),
    ],
)
def test_a_sampler_suits_its_model(sampler, fields, words):
    with pytest.raises(ValueError, match=words):
        denoiser.DBLMConfig(**fields, sampler=sampler)


def test_no_field_goes_unchecked():
    """An object that nothing accepts is refused in every field of ours."""
    fields = list(inspect.signature(denoiser.DBLMConfig).parameters)[:-1]
    assert len(fields) > 15

    class Odd:
        def __bool__(self):
            return True

    for field in fields:
        with pytest.raises((TypeError, ValueError)):
            denoiser.DBLMConfig(**{**MIXTURE, field: Odd()})


def test_the_options_of_a_caller_are_copied():
    """A change of the dictionary afterwards is no change of the model."""
    sampler = {"stagger": 1.0}
    config = denoiser.DBLMConfig(sampler=sampler)
    sampler["stagger"] = -5
    assert config.sampler == {"stagger": 1.0}
    assert denoiser.DBLMConfig is configuration.DBLMConfig


def test_a_stored_configuration_with_a_wrong_field_is_refused(tmp_path):
    """What was edited by hand is checked when it is read."""
    denoiser.DBLMConfig(clean_rate=0.5).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    text = file.read_text("utf-8")
    assert '"clean_rate": 0.5' in text
    file.write_text(text.replace('"clean_rate": 0.5', '"clean_rate": -1'))
    with pytest.raises(ValueError, match="clean_rate is a share"):
        denoiser.DBLMConfig.from_pretrained(tmp_path)
