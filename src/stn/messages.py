"""Errors of Hydra, omegaconf, YAML and argparse in one line that names the nearest valid choice."""

import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError as YAMLError  # type: ignore[import-untyped]

from stn.errors import UserError

EQUAL = "a setting is key=value, such as budget=smoke"


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that is spelt most like `word`; None if none is. Of dotted keys, the last name is compared.

    An equal name is preferred, then a choice without dots. Of choices equally near, the one with the same first letter.
    """
    by_name = {choice.rpartition(".")[2]: choice for choice in reversed(list(choices))}  # of equal names, the first
    plain = [name for name, choice in by_name.items() if name == choice]
    matches = get_close_matches(word, plain) or get_close_matches(word, by_name)

    def likeness(name: str) -> tuple[float, bool]:
        return SequenceMatcher(None, name, word).ratio(), name[0] == word[0]

    return by_name.get(word) or (by_name[max(matches, key=likeness)] if matches else None)


def hint(word: str, choices: Iterable[str]) -> str:
    """`: did you mean <choice>?`, or nothing."""
    choice = nearest(word, choices)
    return f": did you mean {choice}?" if choice else ""


def one_line(error: BaseException) -> str:
    """The message of Hydra, omegaconf, YAML or ours, without line breaks and omegaconf's lists of keys and types."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, YAMLError):
        return _of_yaml(error)
    text = str(error)
    if "'hydra/sweeper/optuna'" in text:
        return "search= needs Optuna, which is not installed: run `sh setup.sh search`"
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        text = f"{text.splitlines()[0]} {cause}"
    if found := re.search(r"(Could not find '(.+)/([^/']+)')\s+(Available options in [^:]+:)\s+(.*)", text, re.DOTALL):
        message, _, word, listed, rest = found.groups()
        choices = rest.partition("Config search path")[0].split()
        return f"{message}{hint(word, choices)} {listed} {' '.join(choices)}"
    key = getattr(error, "full_key", None) or getattr(cause, "full_key", None)
    lines = [line.strip() for line in text.splitlines()]
    lines = lines[: next((i for i, line in enumerate(lines) if line.startswith("Config search path")), None)]
    lines = [line for line in lines if line and not re.match(r"(full_key|object_type|reference_type)[=:]", line)]
    line = re.sub(r"\s+", " ", "; ".join(lines[:2]) if not isinstance(error, HydraException) else " ".join(lines))
    if "missing EQUAL" in line:
        return f"{line.partition(' missing EQUAL')[0]}: {EQUAL}"
    return (f"{key}: {line}" if key and key not in line else line) + _hint_of_key(error)


def _of_yaml(error: YAMLError) -> str:
    """What a YAML file has wrong, and where: its name, line and column as far as the error has them."""
    mark = getattr(error, "problem_mark", None)
    place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    reason = getattr(error, "problem", None) or str(error)
    return f"{place}not valid YAML ({' '.join(reason.split())}): correct this file"


def _hint_of_key(error: BaseException) -> str:
    """What an unknown key may have been meant to be: another of the same group, or one further down."""
    for each in (error, error.__cause__):
        node = getattr(each, "parent_node", None)
        if isinstance(node, DictConfig) and re.match("Key .* (is not in struct|not in )", str(each)):
            choices = _keys(OmegaConf.to_container(node, resolve=False))
            group = str(getattr(each, "full_key", "")).rpartition(".")[0]
            return hint(str(getattr(each, "key", "")), [f"{group}.{choice}".lstrip(".") for choice in choices])
    return ""


def _keys(values: object) -> list[str]:
    """The keys of nested mappings, dotted: first those of the outermost."""
    if not isinstance(values, Mapping):
        return []
    return [*map(str, values), *(f"{key}.{name}" for key, value in values.items() for name in _keys(value))]


def unknown_option(arguments: Sequence[str], message: str, keys: Iterable[str]) -> str:
    """What argparse says of a command line of Hydra, for those who put dashes before a setting."""
    for place, argument in enumerate(arguments):
        option, equal, value = argument.partition("=")
        name = option.lstrip("-")
        if argument.startswith("-") and argument in message and len(name) > 1:
            following = arguments[place + 1] if place + 1 < len(arguments) else ""
            if not equal and following and "=" not in following and not following.startswith("-"):
                argument, value = f"{argument} {following}", following
            setting = f"{nearest(name, keys) or name}={value or '...'}"
            return f"{argument} is no option: settings have no dashes, did you mean {setting}?"
    return f"{message}: {EQUAL}"


class Parser(ArgumentParser):
    """An argparse whose errors are one line, `error: ...`, with the nearest option or choice, and exit status 2."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        # Before argparse does: it would take the value of a misspelt option for another argument.
        for argument in sys.argv[1:] if args is None else args:
            if argument == "--":
                break
            self._check(argument)
        return super().parse_known_args(args, namespace)

    def _check(self, argument: str) -> None:
        """End with an error if an argument is an option that there is not."""
        options = [option for option in self._option_string_actions if option.startswith("--")]
        name = argument.partition("=")[0]
        if not re.match(r"-+[A-Za-z]", name) or name == "-h" or any(option.startswith(name) for option in options):
            return
        names = [option.lstrip("-") for option in options]
        choice = nearest(name.lstrip("-"), names)
        self.error(f"{name} is no option: {f'did you mean --{choice}?' if choice else f'there are {_listed(options)}'}")

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        if match := re.fullmatch(r"(.+): invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL):
            argument, value, listed = match.groups()
            choices = listed.replace("'", "").split(", ")
            message = f"{argument}: {value} is not one of {_listed(choices)}{hint(value, choices)}"
        elif match := re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL):
            name, equal, value = match[1].partition("=")
            choice = nearest(name, [option.lstrip("-") for option in self._option_string_actions]) if equal else None
            meant = f"did you mean --{choice} {value}?" if choice else f"`{self.prog} --help` lists the options"
            message = f"{match[1]} belongs to no option: {meant}"
        self.exit(2, f"error: {' '.join(message.split())}\n")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
