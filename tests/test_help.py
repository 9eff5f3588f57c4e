"""The command line's own words: help with examples that are true, and one message a mistake."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from diptych import __version__
from diptych.__main__ import app, main
from diptych.data import storage
from diptych.data.pack import Sample, tar
from diptych.finetune.recipes import RECIPES
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir

ROOT = Path(__file__).parents[1]


def verbs(command: Any, *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """((verb, sub-verb), its command) of everything that can be said."""
    for name, each in getattr(command, "commands", {}).items():
        yield (*above, name), each
        yield from verbs(each, *above, name)


TOP: Any = typer.main.get_command(app)
VERBS = dict(verbs(TOP))
GROUPS = [verb for verb, command in VERBS.items() if hasattr(command, "commands")]
LEAVES = [verb for verb in VERBS if verb not in GROUPS]


def help_of(*words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exit_code == 0, done.output
    return done.output


def test_the_verbs_of_the_issue_are_there() -> None:
    asked = "demo plan train submit resume jobs logs stop up join down evaluate sample export"
    asked += " ledger data"
    assert set(asked.split()) <= {verb[0] for verb in VERBS}
    assert {("data", verb) for verb in ("pack", "index", "check", "preview")} <= set(LEAVES)


@pytest.mark.parametrize("verb", LEAVES, ids=" ".join)
def test_help_of_a_verb_has_examples(verb: tuple[str, ...]) -> None:
    said = help_of(*verb)
    assert f"Usage: diptych {' '.join(verb)}" in said or f"Usage: root {' '.join(verb)}" in said
    assert "Examples:" in said
    assert f"diptych {' '.join(verb)}" in said.partition("Examples:")[2]


@pytest.mark.parametrize("verb", [(), *GROUPS], ids=lambda verb: " ".join(("diptych", *verb)))
def test_help_of_a_group_lists_its_verbs(verb: tuple[str, ...]) -> None:
    said = help_of(*verb)
    below = [each for each in VERBS if each[:-1] == verb]
    assert len(below) > 1
    for each in below:
        summary = (VERBS[each].help or "").strip().partition("\n")[0].replace("`", "")
        assert re.search(rf"\b{each[-1]}\b", said)
        assert summary[:30] in said


@pytest.mark.parametrize("verb", LEAVES, ids=" ".join)
def test_every_option_says_what_it_is_for(verb: tuple[str, ...]) -> None:
    """`--shape` and the like may be explained once for all verbs, but never not at all."""
    for parameter in VERBS[verb].params:
        assert getattr(parameter, "help", None), f"{' '.join(verb)}: {parameter.name}"


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `diptych ...` line, without its comment."""
    for line in re.findall(r"^\s*(?:\.venv/bin/)?diptych (.+)$", text, re.M):
        yield shlex.split(re.sub(r"\[.*?\]|`.*", "", line), comments=True)


def examples() -> list[list[str]]:
    found = [words for _, command in VERBS.items() for words in commands(command.help or "")]
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(), re.S)
        found += [words for block in blocks for words in commands(block)]
    return found


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_an_example_is_a_command_that_there_is(words: list[str]) -> None:
    """Parsed, not run: every verb, option and number of arguments exists."""
    command, rest, verb = TOP, words, list[str]()
    while hasattr(command, "commands"):
        verb.append(rest[0])
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(" ".join(verb), list(rest))


def test_there_are_examples() -> None:
    assert len(examples()) > 25


# Mistakes: exit code 2, one message, no traceback.


def said(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """What a command that ends with code 2 said, as one line."""
    monkeypatch.setattr(sys, "argv", ["diptych", *words])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert ended.value.code == 2, out + err
    assert out == ""
    assert "Traceback" not in err
    return " ".join(err.split())


@pytest.mark.parametrize("verb", ["plan", "train", "submit"])
def test_an_unknown_recipe(
    verb: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [verb, "vlp_eazy", *(["--cluster", "local"] if verb == "submit" else [])]
    assert said(capfd, monkeypatch, *words) == (
        "error: recipe (or a .yaml file): unknown 'vlp_eazy'. Did you mean 'vlp_easy'? "
        f"There are: {', '.join(RECIPES)}."
    )


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["plan", "nowhere.yaml"], ["error: file:///", "nowhere.yaml: not there"]),
        (["plan", "vlp_easy", "--set", "bach=3"], ["unknown 'bach'. Did you mean 'batch'?"]),
        (["plan", "vlp_easy", "--shape", "pare"], ["unknown 'pare'. Did you mean 'pair'?"]),
        (["plan", "vlp_easy", "--shape-set", "x=1"], ["unknown 'x'", "workers"]),
        (["plan", "vlp_easy", "--set", "steps=99999999999999999999"], ["steps", "1000000000000"]),
        (["plan", "vlp_easy", "--set", "epochs=1e300"], ["epochs", "1000000000000"]),
        (["plan", "vlp_easy", "--set", "epochs=.nan"], ["epochs", "a finite number"]),
        (["plan", "vlp_easy", "--set", "optim.betas=[1.5, 0.9]"], ["optim.betas.0", "less than 1"]),
        (["plan", "vlp_easy", "--set", "optim.betas=[0.9, -1]"], ["optim.betas.1", "equal to 0"]),
        (["jobs", "--runs", "ftp://a/b"], ["the scheme 'ftp' is refused"]),
        (["evaluate", "nobody", "--runs", "."], ["error: no run at file:///", "diptych jobs"]),
        (["export", "nobody", "--to", "diptych", "--out", "x"], ["error: no run at"]),
        (["ledger", "nobody", "--steps", "5:1"], ["--steps '5:1' is not A:B"]),
        (["ledger", "nobody", "--steps", "all"], ["--steps 'all' is not A:B"]),
        (["logs", "nobody"], ["error: no run at"]),
        (["stop", "nobody"], ["error: no run at"]),
        (["resume", "nobody"], ["error: no run at"]),
        (["down"], ["no node runs here that `diptych up`"]),
        (["train", "vlp_easy", "--start-from", "runs/vlp_easy"], ["diptych resume", "--run NAME"]),
        (["submit", "vlp_easy", "--cluster", "http://127.0.0.1:9"], ["no Ray dashboard answers"]),
        (["submit", "vlp_easy", "--cluster", "ray://h:1"], ["--cluster 'ray://h:1': say `local`"]),
        (["submit", "vlp_easy", "--cluster", "http://u:p@h"], ["with a password in it is refused"]),
        (["submit", "vlp_easy", "--cluster", "http://h/?x"], ["is not the address of a cluster"]),
        (["demo", "--serve", "--home", "nowhere"], ["nowhere holds no demo"]),
        (["data", "check", "nowhere"], ["nowhere has no index", "diptych data index"]),
        (["data", "index", "*.nothing"], ["matches nothing"]),
        (["data", "index", "pipe:cat x"], ["the scheme 'pipe' is refused"]),
        (["data", "pack", "nowhere", "out"], ["nowhere is not a folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(
    words: list[str],
    parts: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    message = said(capfd, monkeypatch, *words)
    assert message.count("error: ") == 1
    assert all(part in message for part in parts), message


def test_a_ledger_ends_with_its_run(
    small: Callable[..., Run],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    RunDir(storage.absolute(str(tmp_path / "a"))).create(small("name=a", "steps=30"), {})
    message = said(capfd, monkeypatch, "ledger", "a", "--steps", "30:31", "--runs", str(tmp_path))
    assert "has steps 0 to 29; --steps 30:31 has none" in message


def test_an_index_of_fewer_shards_says_so(
    samples: Callable[..., list[Sample]], tmp_path: Path
) -> None:
    for number in range(3):
        storage.write(f"{tmp_path}/{number}.tar", tar(samples(2)))
    whole, part = (
        CliRunner().invoke(app, ["data", "index", f"{tmp_path}/{name}.tar"]) for name in ("*", "1")
    )
    assert whole.exit_code == part.exit_code == 0
    assert "no longer" not in whole.stderr
    assert f"no longer in this index: 2 shards, such as file://{tmp_path}/0.tar" in part.stderr


@pytest.mark.parametrize("verb", LEAVES, ids=" ".join)
def test_an_unknown_option(
    verb: tuple[str, ...], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = said(capfd, monkeypatch, *verb, "--colour")
    assert message.count("No such option: --colour") == 1
    assert f"diptych {' '.join(verb)} --help" in message


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["trian", "vlp_easy"], "No such command 'trian'"),
        (["data", "idnex", "x"], "No such command 'idnex'"),
        (["train"], "Missing argument 'RECIPE'"),
        (["export", "a"], "Missing option '--to'"),
        (["train", "vlp_easy", "again"], "unexpected extra argument"),
        (["data", "pack", "a", "b", "--per-shard", "0"], "Invalid value for '--per-shard'"),
        (["--colour"], "No such option: --colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_there_is_not(
    words: list[str],
    part: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert part in said(capfd, monkeypatch, *words)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["diptych", "plan", "vlp_eazy", "--debug"])
    with pytest.raises(Exception, match="unknown 'vlp_eazy'"):
        main()


def test_it_says_its_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.output.strip() == f"diptych {__version__}"
