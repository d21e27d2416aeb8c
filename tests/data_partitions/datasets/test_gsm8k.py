"""GSM8K from written rows: what is learned, and which numbers count; the real answers, judged as a run would."""

import json
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_partitions.dataset import FederatedData
from data_partitions.datasets.gsm8k import GSM8K, final_number
from data_partitions.errors import DataError
from data_partitions.texts.tokens import load_tokenizer
from fedsim.data import Examples
from fedsim.evaluation import Evaluator
from fedsim.parameters import FlatParameters
from fedsim.task import task_of
from tests.data_partitions.words import save_words
from tests.tiny import CPU, ONE_WORKER

REAL = Path(__file__).resolve().parents[4] / "shared/data"
STORIES, END = str(REAL / "models/stories260K"), 2
needs_real = pytest.mark.skipif(not (REAL / "gsm8k").is_dir(), reason="the real GSM8K is not beside the checkout")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5 + 13 = <<5+13=18>>18 eggs.\n#### 18", 18),
        ("#### 1,200", 1200),
        ("#### $1,200.00.", 1200),
        ("#### -$3", -3),
        ("####\n$-3 dollars", -3),
        ("#### 18\n\nQuestion: how many?\nAnswer: 7\n#### 7", 18),
        ("The answer is 5 * 3 = 15.\n#### 15", 15),
        ("#### none\nThe answer is: 4", 4),
        ("#### Step 1: 3+4=7\n#### 7", 7),
        ("#### Step 1: 3+4=7\n####$ -8", -8),
        ("#### Total: 9\nor 7", 9),
        ("First, the answer is 3. No: The answer is: 3/4", Fraction(3, 4)),
        ("The answer is $0.50.", Fraction(1, 2)),
        ("the answer is .5", Fraction(1, 2)),
        ("so 40% of 50 are 20, about 7-5 more", 5),
        ("it falls by −5", -5),
        ("1,2,3", 3),
        ("109,200,000 in all", 109_200_000),
        ("1/0", 0),
        ("no number at all ####", None),
        ("", None),
        ("#### " + "9" * 5000, None),
    ],
)
def test_the_number_that_an_answer_ends_in(text: str, number: int | Fraction | None) -> None:
    assert final_number(text) == number


def write(folder: Path, split: str, rows: list[dict[str, str]]) -> None:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "train", [{"question": "the goalie saves", "answer": "orbit\n#### 7"}])
    rows = [{"question": "ice", "answer": "moon\n#### 7"}, {"question": "the moon", "answer": "#### 1,000"}]
    write(tmp_path, "test", rows)
    save_words(tmp_path / "words", words=("Question:", "Answer:", "####", "7", "1,000", "8"))
    return tmp_path


def load(folder: Path, **arguments: Any) -> FederatedData:
    whole: dict[str, Any] = {"path": str(folder), "tokenizer": str(folder / "words"), "cache": str(folder / "cache")}
    return GSM8K(**(whole | arguments)).load()


def test_what_is_learned(folder: Path) -> None:
    data, tokenizer = load(folder), load_tokenizer(str(folder / "words"))
    assert (
        tokenizer.decode(data.train["input_ids"][0]) == "[start] Question: the goalie saves Answer: orbit #### 7 [end]"
    )
    assert tokenizer.decode(data.train["labels"][0]) == "orbit #### 7 [end]"
    assert data.test["row"].tolist() == [0, 1]
    assert (data.task, data.metrics, data.pad_token_id) == ("generation", ("exact_match",), 0)
    assert data.classes is not None
    assert data.classes.tolist() == [0]


def test_answers_are_judged_by_row(folder: Path) -> None:
    writing = load(folder, max_new_tokens=4, samples=2, temperature=0.5).writing
    assert writing is not None
    assert (writing.max_new_tokens, writing.samples, writing.temperature) == (4, 2, 0.5)
    words = {word: writing.tokenizer.convert_tokens_to_ids(word) for word in ("7", "1,000", "8", "####", "[end]")}
    seven, thousand, eight, mark, end = words.values()
    tokens = torch.tensor([[[seven, end, eight], [mark, seven, eight]], [[thousand, eight, end], [thousand, end, end]]])
    assert writing.judge(torch.tensor([0, 1]), tokens).tolist() == [[True, True], [False, True]]


def test_a_reference_that_is_cut_is_judged_whole(folder: Path) -> None:
    """The loss sees one token of the answer, the judge its number."""
    data = load(folder, max_new_tokens=1)
    assert data.test["labels"].shape == (2, 1)
    assert data.writing is not None
    assert data.writing.is_right(0, "7")
    assert not data.writing.is_right(0, "8")


def test_training_on_metamath(folder: Path) -> None:
    (folder / "meta").mkdir()
    rows = [{"type": t, "query": "ice", "response": "The answer is: 7"} for t in ("GSM_SV", "GSM_AnsAug", "GSM_SV")]
    write(folder / "meta", "train", rows)
    data = load(folder, train_path=str(folder / "meta"))
    assert data.classes is not None
    assert data.classes.tolist() == [1, 0, 1]
    assert len(data.train["labels"]) == 3
    assert len(data.test["labels"]) == 2


def test_a_part_of_the_test_split(folder: Path) -> None:
    assert load(folder, test_examples=1).test["row"].tolist() == [0]
    assert load(folder, test_examples=9).test["row"].tolist() == [0, 1]


def test_refuses_a_test_answer_without_a_number(folder: Path) -> None:
    write(folder, "test", [{"question": "ice", "answer": "#### 7"}, {"question": "ice", "answer": "it is 7"}])
    with pytest.raises(DataError, match=r"test answer at row 1 has no number behind ####, expected e.g. '#### 18'"):
        load(folder)
    assert load(folder, test_examples=1).test["row"].tolist() == [0]


@needs_real
def test_the_real_answers_are_right_and_empty_ones_are_not(tmp_path: Path) -> None:
    """Text to tokens, tokens to texts, texts to numbers, for all 1,319 questions; only training is cut short."""
    (tmp_path / "test.jsonl").symlink_to(REAL / "gsm8k/test.jsonl")
    with (REAL / "gsm8k/train.jsonl").open() as file:
        write(tmp_path, "train", [json.loads(next(file)) for _ in range(40)])
    data = load(tmp_path, tokenizer=STORIES, max_length=1400, max_new_tokens=800)
    rows, labels = data.test["row"], data.test["labels"]
    assert len(rows) == 1319
    assert bool((labels == END).any(1).all()), "every answer has its end, so none is cut"
    gold, task = labels.masked_fill(labels == -100, END)[:, None], task_of(data)

    def score(answers: Tensor) -> float:
        assert data.writing is not None
        right = data.writing.judge(rows[: len(answers)], answers).sum(1)
        return task.metrics({"losses": torch.zeros(len(answers)), "right": right})["exact_match"]

    assert score(gold) == 1
    assert score(torch.full_like(gold, END)) == 0
    assert score(gold[1:100]) < 0.1, "another question's answer"


class Repeats(nn.Module):
    """A language model that writes down what it is told to, question by question."""

    generation_config: Any = None

    def __init__(self, questions: Tensor, answers: Tensor, vocabulary: int) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.questions = questions
        self.answers = answers
        self.vocabulary = vocabulary
        self.written = 0

    def forward(self, input_ids: Tensor, logits_to_keep: int, **_: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(len(input_ids), logits_to_keep, self.vocabulary))

    def generate(self, input_ids: Tensor, generation_config: Any, **_: Any) -> Tensor:
        self.written += len(input_ids)
        # Questions end where answers begin, and a batch is as long as its longest.
        asked = (input_ids[:, None] == self.questions[None, :, -input_ids.shape[1] :]).all(2)
        assert asked.sum(1).eq(1).all()
        answers = self.answers[asked.int().argmax(1), : generation_config.max_new_tokens]
        return torch.cat([input_ids, answers], dim=1)


@needs_real
def test_the_real_answers_through_the_evaluator(tmp_path: Path) -> None:
    """Every third of the first twelve is another one's answer."""
    with (REAL / "gsm8k/train.jsonl").open() as file:
        rows = [json.loads(next(file)) for _ in range(16)]
    write(tmp_path, "train", rows[12:])
    write(tmp_path, "test", rows)
    data = load(tmp_path, tokenizer=STORIES, max_length=1024, max_new_tokens=600, test_examples=12)
    answers = data.test["labels"].masked_fill(data.test["labels"] == -100, END)
    answers[::3] = answers[1]
    questions = data.transform(data.test, None)["input_ids"][:, : -answers.shape[1]]
    model = Repeats(questions, answers, 512)
    parameters = FlatParameters(model)
    examples = Examples(data, data.test, CPU, torch.float32)
    evaluator = Evaluator(model, parameters, task_of(data), examples, 5, nullcontext)
    found = evaluator.evaluate(parameters.vector.clone(), ONE_WORKER).metrics
    assert found["exact_match"] == pytest.approx(8 / 12)
    assert found["loss"] == pytest.approx(float(torch.tensor(512.0).log()))
    assert model.written == 12
