import dataclasses

import pytest

from fedsim.classification import Classification, MultiLabel
from fedsim.errors import ConfigurationError
from fedsim.language import Generation, LanguageModelling, TextToText
from fedsim.task import task_of
from tests import tiny


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("image_classification", Classification),
        ("text_classification", Classification),
        ("multi_label_image_classification", MultiLabel),
        ("language_modelling", LanguageModelling),
        ("text_to_text", TextToText),
        ("generation", Generation),
    ],
)
def test_tasks_go_by_the_names_that_data_sets_give(name: str, task: type) -> None:
    data = dataclasses.replace(tiny.images(), label_names=(), task=name)
    assert isinstance(task_of(data), task)
    with pytest.raises(ConfigurationError, match="did you mean"):
        task_of(dataclasses.replace(data, task=name[:-2] + "m"))
