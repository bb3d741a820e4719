"""Every input of the trainer and of its options nodes changes how a run is set up."""

from devtools import in_process_host as host

TOKENS = ("with the LoRA", "alone (Textual Inversion)")
# What the run itself reads, and what of the real host tests it.
IN_THE_RUN = {
    "captions", "name",  # every test of the trainer
    "recipe=one image", "recipe=custom",  # a choice fills the widgets in: the frontend, tests/browser
    "learned_tokens=with the LoRA",  # test_learned_tokens.py
    *(f"learned_tokens={choice}.{name}" for choice in TOKENS for name in ("initializers", "vectors")),
    "checkpoint_every", "checkpoint_minutes", "resume",  # test_resume.py
    "compile", "gradient_checkpointing", "precision", "stream_weights", "tensorboard",  # test_recipe_options.py
    "reference_cache", "reference_device",  # test_command_line.py, test_reference_ahead.py
}  # fmt: skip


def io():
    return host.pack("nodes.training.option_groups").io


def settings():
    return host.pack("nodes.training.settings")


def inputs():
    groups = host.pack("nodes.training.option_groups").GROUPS.values()
    return host.pack("nodes.training.inputs").own(), [entry for group in groups for entry in group()]


def option(entry, chosen):
    return {entry.id: chosen.key, **filled(chosen.inputs)}


def filled(entries):
    """The values of inputs as they stand on a new node."""
    values = {}
    for entry in entries:
        if isinstance(entry, io().DynamicCombo.Input):
            values[entry.id] = option(entry, entry.options[0])
        elif getattr(entry, "default", None) is not None:
            values[entry.id] = entry.default
    return values


def other(entry):
    """Another value of an input than its default; None for a socket."""
    if isinstance(entry, io().Boolean.Input):
        return not entry.default
    if isinstance(entry, io().Combo.Input):
        return next(choice for choice in entry.options if choice != entry.default)
    if isinstance(entry, io().String.Input):
        return "to_k"
    if isinstance(entry, (io().Int.Input, io().Float.Input)):
        step = entry.step or 1
        return entry.default + step if entry.default + step <= entry.max else entry.default - step
    return None


def changes(entries):
    """(name, values without a change, the same with it) for every input, also those of each choice."""
    for entry in entries:
        if isinstance(entry, io().DynamicCombo.Input):
            first, *others = entry.options
            for chosen in others:
                yield (
                    f"{entry.id}={chosen.key}",
                    {entry.id: option(entry, first)},
                    {entry.id: option(entry, chosen)},
                )
            for chosen in entry.options:
                for name, *pair in changes(chosen.inputs):
                    yield (
                        f"{entry.id}={chosen.key}.{name}",
                        *({entry.id: option(entry, chosen) | v} for v in pair),
                    )
        elif (value := other(entry)) is not None:
            yield entry.id, {}, {entry.id: value}


def wrapped(value):
    return {name: wrapped(v) for name, v in value.items()} if isinstance(value, dict) else [value]


def set_up(own, options):
    """All that the settings make of the inputs."""
    module = settings()
    values = module.settled(wrapped(filled(inputs()[0]) | own), filled(inputs()[1]) | options)
    config, objective = module.training_config(values)
    return (
        config, module.generation_config(objective), module.adapter_config(values, None, None),
        module.preparation(values, ["a <dog>"]), module.steps_between_previews(values),
    )  # fmt: skip


def test_every_input_changes_the_run():
    own, options = inputs()
    ignored = [name for name, before, after in changes(own) if set_up(before, {}) == set_up(after, {})]
    ignored += [name for name, before, after in changes(options) if set_up({}, before) == set_up({}, after)]
    assert set(ignored) == IN_THE_RUN
