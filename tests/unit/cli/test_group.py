"""The group knows its commands by name and imports them when they run."""

from __future__ import annotations

import click
import pytest

from workflow_composer.cli.group import COMMANDS, ENTRY_POINTS, cli, commands_of
from workflow_composer.errors import PluginError
from workflow_composer.plugins.hookspecs import ENTRY_POINT_GROUP, hookimpl
from workflow_composer.plugins.host import plugin_host


def all_commands(group, path=()):
    """Every command and subcommand, with its path."""
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            yield (*path, name), command
            if isinstance(command, click.Group):
                yield from all_commands(command, (*path, name))


PLACES = {" ".join(path): command for path, command in all_commands(cli)}


class Brings:
    """A plugin with one command."""

    def __init__(self, command):
        self.command = command

    @hookimpl
    def register_commands(self, register):
        register(self.command)


def host_with(command):
    """A host with that plugin."""
    host = plugin_host(discover=False)
    host.add(Brings(command), name="stranger")
    return host


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says_of_itself(name):
    """The short help that is shown without importing the command is the one it has."""
    assert PLACES[name].get_short_help_str(200) == COMMANDS[name]


def test_the_name_of_the_entry_points_is_that_of_the_hooks():
    """It is repeated so that `--help` need not load the plugin machinery."""
    assert ENTRY_POINTS == ENTRY_POINT_GROUP


@pytest.mark.parametrize("place", PLACES)
def test_every_command_takes_json_and_debug_and_shows_examples(place, command):
    """What can be said before a command's name can be said behind it."""
    done = command(*place.split(), "--help")

    assert done.code == 0
    assert "--json" in done.out
    assert "--debug" in done.out
    assert f"workflow-composer {place}" in done.out or place == "route"
    assert "Examples:" in done.out


@pytest.mark.parametrize("place", PLACES)
def test_every_option_of_every_command_is_explained(place):
    """No option without a word."""
    for parameter in PLACES[place].params:
        assert not isinstance(parameter, click.Option) or parameter.help


def test_an_unknown_command_is_answered_with_the_nearest(command):
    """A slip of the finger."""
    done = command("stauts")

    assert done.code == 2
    assert "no such command: 'stauts'; did you mean 'status'?" in done.err


def test_a_command_of_a_plugin_is_merged_in():
    """Under the name it gave itself."""

    @click.command("greet")
    def greet():
        """Say hello."""

    assert commands_of(host_with(greet)) == {"greet": greet}


def test_a_plugin_must_not_take_the_name_of_a_built_in_command():
    """Neither wins in silence; the error names the plugin and the way out."""
    with pytest.raises(PluginError, match="'stranger' registers a command 'status'") as caught:
        commands_of(host_with(click.Command("status")))
    assert "WORKFLOW_COMPOSER_BLOCK_PLUGINS=stranger" in caught.value.hint


def test_a_command_that_is_none_is_refused():
    """A function that was never decorated."""

    class Named:
        name = "greet"

        def __call__(self):
            pass

    with pytest.raises(PluginError, match="not a click command"):
        commands_of(host_with(Named()))
