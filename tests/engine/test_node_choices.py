"""Requests that a node cannot meet: dynamic choices that it has not, sizes that the Toy World does not draw."""

import pytest

from dco_core.errors import DCOError
from devtools import in_process_host as host


def sent(inputs, room="guidance.reward_guidance", name="DCORewardGuidanceOptions"):
    """A node as the host runs it, with these inputs in the prompt."""
    node = getattr(host.pack(f"nodes.{room}"), name)
    from comfy_api.latest._io import HiddenHolder
    from comfy_execution.graph import DynamicPrompt

    prompt = DynamicPrompt({"7": {"class_type": name, "inputs": inputs}})
    running = type("Running", (node,), {})
    running.hidden = HiddenHolder("7", None, None, prompt, None, None)
    return running


def test_a_choice_that_a_node_has_not_is_an_error_that_names_it():
    check = host.pack("nodes.host.node_choices").check_choices
    check(sent({}))
    check(sent({"more_loras": "1 more"}))
    with pytest.raises(ValueError, match="more_loras '7 more' is unknown: choose this one alone, 1 more, 2 more or 3"):
        check(sent({"more_loras": "7 more"}))


@pytest.mark.parametrize(("value", "message"), [
    ("DCO", None),
    ("Nope", "objective 'Nope' is unknown: choose DCO, DreamBooth"),
])  # fmt: skip
def test_a_choice_inside_of_a_choice_is_checked_too(value, message):
    check = host.pack("nodes.host.node_choices").check_choices

    def trainer(**inputs):
        return sent(inputs, "training.trainer", "DCOLoRATrainer")

    if message is None:
        check(trainer(objective=value, **{"objective.beta": "auto"}))
        message = "beta 0.03 is unknown: choose auto, found on my images or own value"
    with pytest.raises(ValueError, match=message):
        check(trainer(objective=value, **{"objective.beta": 0.03}))


@pytest.mark.parametrize(
    ("size", "remedy"),
    [((1024, 1024), "set resolution to 256"), ((192, 320), "set crop to square")],
)
def test_the_toy_world_says_what_to_set_when_a_picture_to_learn_is_no_square_of_its_size(size, remedy):
    toy = host.pack("nodes.host.toy_world")
    model = toy.load(None)[0]
    toy.check_sizes(model, [(256, 256)])
    with pytest.raises(ValueError, match=f"{size[1]} x {size[0]}: {remedy}"):
        toy.check_sizes(model, [(256, 256), size])


def test_errors_of_the_pack_have_a_short_name_in_the_host():
    import execution  # the host's

    assert execution.full_type_name(DCOError) == "DCOError"
    assert execution.full_type_name(host.pack("dco_core.errors").DCOError) == "DCOError"
