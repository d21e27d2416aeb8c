import pytest

from fedsim.errors import ConfigurationError, unknown_name

METHODS = ["LoRA", "FLASC", "AdapterLTH", "SparseAdapter", "FedSelect"]


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("FLASK", "unknown method 'FLASK'; did you mean FLASC?"),
        ("flasc", "unknown method 'flasc'; did you mean FLASC?"),
        ("lora", "unknown method 'lora'; did you mean LoRA?"),
        ("AdapterLHT", "unknown method 'AdapterLHT'; did you mean AdapterLTH or SparseAdapter?"),
        ("xyzzy", "unknown method 'xyzzy'; known: AdapterLTH, FLASC, FedSelect, LoRA, SparseAdapter"),
        ("", "unknown method ''; known: AdapterLTH, FLASC, FedSelect, LoRA, SparseAdapter"),
    ],
)
def test_a_misspelt_name_is_answered(given: str, answer: str) -> None:
    """With what is near, whatever its case, or with everything there is."""
    error = unknown_name("method", given, METHODS)
    assert isinstance(error, ConfigurationError)
    assert str(error) == answer


def test_several_near_names_are_all_offered_and_no_more_than_three() -> None:
    answer = str(unknown_name("data set", "digit", ["Digits", "Digit2", "Text"]))
    assert answer.endswith("did you mean Digits or Digit2?")
    assert str(unknown_name("key", "aaaa", ["aaab", "aaac", "aaad", "aaae"])).count(" or ") == 2


def test_a_configuration_error_is_a_value_error() -> None:
    """So that argument parsers report it as a bad value."""
    assert issubclass(ConfigurationError, ValueError)
