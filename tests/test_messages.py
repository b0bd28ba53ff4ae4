"""Promises of what a wrong command line is told: one line, the nearest option, exit status 2."""

import pytest

from conftest import ROOT, one_error, run
from stn.messages import nearest

COMMANDS = ("stn.table", "stn.figures", "stn.play", "stn.pipeline", "stn.publish", "benchmarks.__main__")


@pytest.mark.parametrize(
    "command, arguments, line",
    [
        ("stn.table", ["--tabel", "2"], "--tabel is no option: did you mean --table?"),
        ("stn.table", ["--chek"], "--chek is no option: did you mean --check?"),
        ("stn.table", ["table=2"], "table=2 belongs to no option: did you mean --table 2?"),
        ("stn.table", ["2"], "2 belongs to no option: `python -m stn.table --help` lists the options"),
        ("stn.table", ["--table"], "--table: expected one argument"),
        ("stn.figures", ["-t", "3"], "-t is no option: there are --help, --table"),
        ("stn.play", ["--budgt=quick"], "--budgt is no option: did you mean --budget?"),
        ("stn.publish", ["--outptus", "runs"], "--outptus is no option: did you mean --outputs?"),
        ("stn.pipeline", ["--tabel", "2"], "--tabel is no option: did you mean --table?"),
        ("stn.pipeline", ["tabel"], "what: tabel is not one of table, demo: did you mean table?"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_the_nearest(command, arguments, line, tmp_path):
    assert one_error(run(command, *arguments, cwd=tmp_path)) == f"error: {line}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_with_options_answers_so(command, tmp_path):
    assert one_error(run(command, "--qqq", cwd=tmp_path)).startswith("error: --qqq is no option: there are --help, ")


@pytest.mark.parametrize("argument", ["--tab=2", "--table=2"])
def test_options_may_still_be_shortened(argument, tmp_path):
    assert "params.yaml" in one_error(run("stn.table", argument, cwd=tmp_path))


@pytest.mark.parametrize("choices", [["fcn", "cnn"], ["cnn", "fcn"]])
def test_of_choices_equally_near_the_one_with_the_same_first_letter_is_named(choices):
    assert nearest("cn", choices) == "cnn"


def test_commands_share_one_way_of_reading_their_options():
    files = [*(ROOT / "src/stn").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    own = {path.name for path in files if "argparse.ArgumentParser(" in path.read_text(encoding="utf-8")}
    assert own <= {"cells.py"}  # which the pipeline runs, nobody else
