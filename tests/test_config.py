"""Records: what a user may write, what a mistake is told, and that YAML and digests are exact."""

import ast
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diptych.cluster.shapes import SHAPES, Shape, find_shape
from diptych.config import Record, digest, from_yaml, override, plain, to_yaml
from diptych.errors import RecipeError
from diptych.finetune.parts import KINDS
from diptych.finetune.recipes import RECIPES, find, vqa_easy
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Data, Optim, Run, parse_run, revise

ROOT = Path(__file__).parents[1]


def revised(*settings: str) -> Run:
    return revise(plain(vlp_easy()), list(settings), KINDS, source="vlp_easy")


def from_text(text: str | bytes) -> Run:
    return parse_run(from_yaml(text, source="my.yaml"), KINDS, source="my.yaml")


def refused(*settings: str) -> str:
    with pytest.raises(RecipeError) as caught:
        revised(*settings)
    return str(caught.value)


# What each mistake is told.


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("bach=64", "unknown 'bach'. Did you mean 'batch'? There are: adapters, batch, "),
        ("optim.warmup=1", "unknown 'warmup'. Did you mean 'warmup_steps'?"),
        ("data.trian=x", "unknown 'trian'. Did you mean 'train'?"),
        (
            "data.train=[{url: x, wieght: 2}]",
            "vlp_easy: data.train.0.wieght: unknown 'wieght'. Did you mean 'weight'?",
        ),
        (
            "data.train=[{url: x, weight: 0}]",
            "vlp_easy: data.train.0.weight: Input should be great",
        ),
        ("model.widht=64", "model 'vlp': widht: unknown 'widht'. Did you mean 'width'?"),
        ("objectives.mlm.ratio=0.1", "unknown 'ratio'. Did you mean 'rate'? There are: rate, "),
        ("optin.lr=1", "optin: unknown 'optin'. Did you mean 'optim'?"),
        (
            "objectives.mlmm.rate=0.1",
            "unknown 'mlmm'. Did you mean 'mlm'? There are: itm, mlm, mrm",
        ),
        ("model.kind=vpl", "model: unknown 'vpl'. Did you mean 'vlp'? There are: "),
        ("objectives.0.kind=imt", "Did you mean 'itm'? There are: "),
        ("qqqqqq=1", "unknown 'qqqqqq'. There are: "),
    ],
)
def test_an_unknown_key_is_named_with_its_near_miss(setting: str, said: str) -> None:
    assert said in refused(setting)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optim.lr.x=3", "--set 'optim.lr.x=3': 'x' lies below a plain value."),
        ("objectives.3.rate=0.1", "unknown '3'. Did you mean 'itm'?|unknown '3'. There are: itm"),
        ("objectives.-1.rate=0.1", "unknown '-1'. There are: itm, mlm, mrm."),
        ("optim.betas.=0.5", "unknown ''. There are: 0, 1."),
        ("optim.betas.²=0.5", "unknown '²'. There are: 0, 1."),
        ("optim.lr", "--set 'optim.lr' has no '='. Write --set optim.lr=3e-4."),
        ("=3", "unknown ''"),
        ("data.text=[", "--set 'data.text=[' is not YAML"),
        ("objectives=mlm", "objectives: Input should be a valid tuple (got 'mlm')"),
        ("objectives=[mlm]", "objectives.0: Input should be a valid dictionary"),
        ("model=null", "model: Input should be a valid dictionary"),
    ],
)
def test_an_override_that_leads_nowhere_is_named(setting: str, said: str) -> None:
    assert any(each in refused(setting) for each in said.split("|"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("batch=0", "batch: Input should be greater than or equal to 1 (got 0)"),
        ("steps=1.5", "steps: Input should be a valid integer"),
        ("optim.lr=-1", "optim.lr: Input should be greater than 0"),
        ("optim.lr=fast", "optim.lr: Input should be a valid number"),
        ("optim.lr=.inf", "optim.lr: Input should be a finite number"),
        ("optim.clip=.nan", "optim.clip: Input should be a finite number"),
        ("optim.decay=cosin", "optim.decay: Input should be 'linear', 'cosine' or 'none'"),
        ("name=a/b", "name: String should match pattern"),
        ("objectives=[]", "objectives: Tuple should have at least 1 item"),
        ("objectives.mrm.kind=mlm", "objectives ['itm', 'mlm', 'mlm'] name one twice"),
        ("checkpoint_steps=15", "vlp_easy: checkpoint_steps 15 is not a multiple of log_steps 10."),
        ("model.heads=5", "model 'vlp': width 96 is not a multiple of heads 5"),
        ("model.kind=mlm", "model: unknown 'mlm'. There are: "),
    ],
)
def test_a_value_that_cannot_be_is_named(setting: str, said: str) -> None:
    if setting == "objectives.mrm.kind=mlm":
        message = refused("objectives=[{kind: itm}, {kind: mlm}, {kind: mlm}]")
    else:
        message = refused(setting)
    assert said in message
    assert "Value error" not in message


def test_every_mistake_is_told_at_once() -> None:
    message = refused(
        "bach=64", "steps=none", "optim.lrr=3", "model.wid=3", "objectives.itm.grup=2",
        "objectives.mlm.rate=7", "optim.decay=slow",
    )  # fmt: skip
    for part in ("'batch'", "steps:", "'lr'", "'width'", "'group'", "rate:", "decay:"):
        assert part in message, part
    assert message.count("\n") == 0


def test_a_shape_names_its_mistakes_too() -> None:
    with pytest.raises(RecipeError, match=r"shape pair: wokers: .* Did you mean 'workers'\?"):
        find_shape("pair", ["wokers=3"])
    with pytest.raises(RecipeError, match=r"unknown 'pare'\. Did you mean 'pair'\?"):
        find_shape("pare", [])
    with pytest.raises(RecipeError, match="zero_stage: Input should be 0, 1, 2 or 3"):
        find_shape("one", ["zero_stage=4"])


# What values mean.


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "+1e-4", "1.0e-4", ".0001", "0.0001", "1_0e-5"])
def test_small_numbers_are_numbers(text: str) -> None:
    assert revised(f"optim.lr={text}").optim.lr == 1e-4
    values = from_yaml(f"optim: {{lr: {text}}}", source="x")
    assert values == {"optim": {"lr": 1e-4}}
    assert isinstance(values["optim"]["lr"], float)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64),
        ("-3", -3),
        ("1_000_000", 1_000_000),
        ("1e3", 1e3),
        ("010", "010"),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("true", True),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("null", None),
        ("~", None),
        ("", None),
        ("2026-01-01", "2026-01-01"),
        ("'64'", "64"),
        ('"1e-4"', "1e-4"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("s3://a/b#c", "s3://a/b#c"),
        ("a=b", "a=b"),
        ("[1, yes, 1e-4]", [1, "yes", 1e-4]),
        ("{kind: mlm}", {"kind": "mlm"}),
    ],
)
def test_values_are_read_as_they_look(text: str, value: Any) -> None:
    """As in YAML 1.2: `no` is an answer, not False, and a date is a fine name for a run."""
    for found in (
        override({"a": {"b": 5}}, [f"a.b={text}"])["a"]["b"],
        from_yaml(f"a: {text}", source="x")["a"],
    ):
        assert found == value
        assert type(found) is type(value)


def test_steps_may_be_written_with_an_exponent() -> None:
    assert revised("steps=1e3").steps == 1000
    assert from_text(to_yaml(vlp_easy()).replace("steps: 1400", "steps: 1e5")).steps == 100_000


def test_answers_may_be_yes_and_no() -> None:
    run = revised("objectives=[{kind: vqa, answers: [no, yes, 1, 1e4]}]".replace("1, 1e4", "'1'"))
    assert plain(run)["objectives"][0]["answers"] == ["no", "yes", "1"]


def test_a_part_is_addressed_by_position_and_by_kind() -> None:
    base = plain(vlp_easy())
    assert [each["kind"] for each in base["objectives"]] == ["itm", "mrm", "mlm"]
    for path in ("objectives.mlm.rate", "objectives.2.rate"):
        assert plain(revised(f"{path}=0.25"))["objectives"][2]["rate"] == 0.25
    assert plain(revised("objectives.1={kind: vqa, answers: [a, b]}"))["objectives"][1] == {
        "kind": "vqa", "weight": 1.0, "answers": ["a", "b"], "soft": False, "inner": None
    }  # fmt: skip
    assert revised("optim.betas.1=0.95").optim.betas == (0.9, 0.95)
    assert revised("objectives=[{kind: mlm}]").objectives[0].kind == "mlm"


def test_overrides_apply_in_order_and_leave_the_original_alone() -> None:
    values = {"optim": {"lr": 1.0}, "list": [1, 2]}
    found = override(values, ["optim.lr=2", "optim.lr=3", "list.0=9", " optim.lr =4"])
    assert found == {"optim": {"lr": 4}, "list": [9, 2]}
    assert values == {"optim": {"lr": 1.0}, "list": [1, 2]}


def test_a_record_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        vlp_easy().steps = 3  # pyright: ignore[reportAttributeAccessIssue]


# What a file may not be.


def bomb(names: int, copies: int) -> str:
    lines = ["a0: &a0 [x]"]
    for n in range(1, names):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * copies)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(10, 9),  # a billion strings from 81 stars
        bomb(60, 2),
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: &a 1\nb: *a",
        "base: &base {lr: 1}\noptim:\n  <<: *base",
    ],
    ids=["nine by nine", "doubling", "within itself", "mapping in itself", "scalar", "merge"],
)
def test_aliases_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"my\.yaml is not YAML: aliases .* are refused"):
        from_yaml(text, source="my.yaml")
    with pytest.raises(RecipeError, match="aliases"):
        revised("model=[&a 1, *a]")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch canary']",
        "!!python/object/new:os.system ['touch canary']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1, 2]",
        "!!binary aGk=",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!timestamp 2026-01-01",
        "!!timestamp x",
        "!!int x",
        "!!bool maybe",
        "!!float ''",
        "!mine 3",
        "! 3",
    ],
)
def test_tags_are_refused(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"my\.yaml is not YAML: tags .* are refused"):
        from_yaml(f"name: {value}", source="my.yaml")
    with pytest.raises(RecipeError, match="tags"):
        revised(f"name={value}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold `key: value` lines, not a NoneType"),
        ("- a\n- b", "must hold `key: value` lines, not a list"),
        ("just words", "must hold `key: value` lines, not a str"),
        ("a: [1", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("a: 1\n---\nb: 2", "is not YAML"),
        ("? [a]\n: 1", "is not YAML"),
        ("lr: 1\nsteps: 2\nlr: 3", "a key stands here twice"),
        ("a: {b: 1, b: 1}", "a key stands here twice"),
        ("a: \x00", "is not YAML"),
        ("a: '\ud800'", "is not YAML"),
        (b"a: \xe4", "is not YAML"),
        (b"\x80\x04\x95\x0b", "is not YAML"),
        ("a: " + "9" * 5000, "is not YAML"),
        ("a: " + "[" * 100_000, "is not YAML"),
        ("a: " + "{b: " * 100_000, "is not YAML"),
        ("a: " + "x" * 1_000_001, "is larger than 1 MB"),
    ],
    ids=range(17),
)
def test_a_file_that_is_no_recipe_is_one_error(text: str | bytes, said: str) -> None:
    with pytest.raises(RecipeError, match=r"^my\.yaml") as caught:
        from_yaml(text, source="my.yaml")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_recipe_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(b"\xff\x00name: x")
    for look in (find, find_shape):
        with pytest.raises(RecipeError, match=r"my\.yaml is not YAML"):
            look(str(file), [])


# Round trips and digests.


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_round_trips(name: str) -> None:
    run = RECIPES[name]()
    again = from_text(to_yaml(run))
    assert again == run
    assert digest(again) == digest(run)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_round_trips(name: str, tmp_path: Path) -> None:
    file = tmp_path / "shape.yaml"
    file.write_text(to_yaml(SHAPES[name]))
    assert find_shape(str(file), []) == SHAPES[name]


ODD = [
    *("1e-4", "1E5", ".5", "1.", "1_0.0", "yes", "no", "null", "~", "true", "010", "0x1f", "1:30"),
    *("2026-01-01", "=", "<<", "*a", "&a", "!!int 3", "- a", "a: b", "# a", " a ", "'", '"', "?"),
    *("\n", "a\n\nb", "\t", "\x00", "\x85", "\u2028", "\ufeff", ".inf", "-.INF", ".nan", ""),
]
TEXTS = st.text() | st.sampled_from(ODD)


@given(st.lists(TEXTS, min_size=2, max_size=6), TEXTS)
def test_any_text_round_trips(answers: list[str], field: str) -> None:
    values = plain(vqa_easy())
    values["objectives"][0]["answers"] = answers
    values["data"]["text"] = field
    run = parse_run(values, KINDS, source="x")
    assert from_text(to_yaml(run)) == run
    assert from_text(to_yaml(run).encode()) == run


BETA = st.floats(0, 1, exclude_max=True)


@given(
    lr=st.floats(0, 1e300, exclude_min=True, allow_nan=False),
    betas=st.tuples(BETA, BETA),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_number_round_trips(lr: float, betas: tuple[float, float], seed: int) -> None:
    values = plain(vlp_easy())
    values["seed"] = seed
    values["optim"] |= {"lr": lr, "betas": betas}
    run = parse_run(values, KINDS, source="x")
    assert from_text(to_yaml(run)) == run


@pytest.mark.parametrize("setting", ["seed", "samples.how.seed"])
def test_a_seed_that_no_generator_takes_is_refused(setting: str) -> None:
    """Before any worker is: torch's generators take 64 bits."""
    torch.Generator().manual_seed(2**64 - 1)
    revise(plain(vlp_easy()), [f"{setting}={2**64 - 1}"], KINDS, source="x")
    with pytest.raises(RecipeError, match=rf"{setting}.*less than 18446744073709551616"):
        revise(plain(vlp_easy()), [f"{setting}={2**64}"], KINDS, source="x")


def scattered(value: Any, draw: random.Random) -> Any:
    """The same values with every mapping's keys in another order."""
    if isinstance(value, list):
        return [scattered(item, draw) for item in value]
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: draw.random())
        return {key: scattered(value[key], draw) for key in keys}
    return value


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything that is no mapping, and of every item of a list."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        place = f"{path}.{key}" if path else str(key)
        if isinstance(item, (dict, list)):
            yield from leaves(item, place)
        else:
            yield place, item


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    run = vqa_easy()
    for seed in range(5):
        values = scattered(plain(run), random.Random(seed))
        assert digest(values) == digest(run)
        assert digest(parse_run(values, KINDS, source="x")) == digest(run)


def test_the_digest_changes_with_any_value() -> None:
    values = plain(vqa_easy()) | {"start_from": "s3://a/b"}
    seen = {digest(values)}
    paths = [path for path, _ in leaves(values)]
    assert len(paths) > 30
    for path, value in leaves(values):
        other = f"{value}x" if isinstance(value, str) else repr((value or 0) + 1)
        seen.add(digest(override(values, [f"{path}={other}"])))
    assert len(seen) == len(paths) + 1
    swapped = override(values, [])
    swapped["objectives"][0]["answers"].reverse()
    assert digest(swapped) not in seen


def test_the_digest_is_what_it_was() -> None:
    """A run's folder is told apart by it; if this moves, no old run can be gone on with."""
    assert digest({"b": [1, 2.5, None, True, "ü"], "a": {}}) == "856b83db2d485b41"


# No key is read by nobody.


HOUSE = ("data", "pretrain", "finetune", "cluster")


@pytest.fixture(scope="module")
def used() -> set[str]:
    """Every attribute that the package reads."""
    files = [f for f in ROOT.rglob("*.py") if f.relative_to(ROOT).parts[0] in HOUSE]
    return {name for file in files for name in reads(file)}


def fields() -> list[str]:
    records: list[type[Record]] = [Run, Data, Optim, Shape, *KINDS.values()]
    return [f"{record.__name__}.{name}" for record in records for name in record.model_fields]


def reads(path: Path) -> Iterator[str]:
    """Attributes that a file reads, outside of validators: checking a value is not using it."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef):
            marks = {ast.unparse(mark).partition("(")[0] for mark in node.decorator_list}
            if marks & {"field_validator", "model_validator"}:
                continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        waiting += ast.iter_child_nodes(node)


def test_no_config_key_is_read_by_nobody(used: set[str]) -> None:
    assert "Shape.cpus_per_worker" in fields()
    assert not [field for field in fields() if field.partition(".")[2] not in used]


def test_a_key_that_nothing_reads_would_be_found(used: set[str], tmp_path: Path) -> None:
    """Its own declaration and a validator do not count."""
    file = tmp_path / "idle.py"
    file.write_text(
        "class Idle(Record):\n"
        "    idle_key: int = 3\n"
        "    @model_validator(mode='after')\n"
        "    def _sound(self):\n"
        "        assert self.idle_key\n"
    )
    assert "idle_key" not in set(reads(file)) | used
