"""The environment that is written beside a run."""

from understudy.training.environment import environment


def test_the_command_can_be_pasted():
    command = environment(["/usr/bin/understudy", "train", "run=my runs/a", "data=it's"])["command"]
    assert command == """understudy train 'run=my runs/a' 'data=it'"'"'s'"""
