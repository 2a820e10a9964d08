"""A config.json and a constructor's arguments, in both directions, by the tables of `checkpoint_tables`."""

from keras_seq.checkpoint_tables import ARCHITECTURES, FAMILIES, REQUIRED, body_of


def architecture_name(config, tensors, place):
    """Which architecture a folder holds.

    Args:
        config: the dict of its config.json.
        tensors: the names of its tensors, which decide where the config does not.
        place: for errors.
    """
    kind, asked = config.get("model_type"), config.get("architectures")
    names = [name for name, one in ARCHITECTURES.items() if one.model_type == kind or (kind is None and asked)]
    if not names:
        raise ValueError(f"load_checkpoint needs model_type in {tuple(FAMILIES)}, got {kind!r} in {place}.")
    if asked:
        if not isinstance(asked, list):
            raise ValueError(f"load_checkpoint needs a list of architectures, got {asked!r} in {place}.")
        known = [name for name in asked if name in names]
        if not known:
            raise ValueError(f"load_checkpoint needs architectures in {names}, got {asked} in {place}.")
        return known[0]

    def explained(name):
        heads = [theirs for theirs, _, _ in ARCHITECTURES[name].heads]
        return sum(any(one.startswith(head) for one in tensors) for head in heads), -len(heads)

    return max(names, key=explained)


def arguments_of(config, model_type, place):
    """The constructor's arguments, from a config."""
    family = FAMILIES[model_type]
    for key, value in family.fixed.items():
        if config.get(key) not in (None, value):
            raise ValueError(f"load_checkpoint needs {key}={value!r} for {model_type}, got {config[key]!r} in {place}.")
    found, keys = {}, {}
    for key, argument, default, names in family.arguments:
        value = config.get(key)
        if value is None and default is REQUIRED:
            raise ValueError(f"load_checkpoint needs {key} for {model_type}, got none in {place}.")
        if value is None:
            value = default(config) if callable(default) else default
        if names is not None:
            if value not in tuple(names):  # as it may be a list, which no dict can look up
                raise ValueError(f"load_checkpoint needs {key} in {tuple(names)}, got {value!r} in {place}.")
            value = names[value]
        elif not isinstance(value, (int, float)):
            raise ValueError(f"load_checkpoint needs a number as {key}, got {value!r} in {place}.")
        if argument != "dropout" and found.get(argument, value) != value:
            got = f"{keys[argument]}={found[argument]!r} and {key}={value!r}"
            raise ValueError(f"load_checkpoint needs one {argument} for {model_type}, got {got} in {place}.")
        found.setdefault(argument, value)
        keys.setdefault(argument, key)
    return {**found, **_settled(family, config)}


def _settled(family, config):
    return {name: value(config) if callable(value) else value for name, value in family.constants.items()}


def written_as(model):
    """The name of the architecture a model is written as, and the architecture."""
    candidates = [(name, one) for name, one in ARCHITECTURES.items() if one.model is type(model)]
    if not candidates:
        known = sorted({one.model.__name__ for one in ARCHITECTURES.values()})
        raise ValueError(f"save_checkpoint needs a model in {known}, got {type(model).__name__}.")
    obstacles = {}
    for name, architecture in candidates:
        found = _obstacles(model, architecture)
        if not found:
            return name, architecture
        obstacles.setdefault(architecture.model_type, f"to write {name}: {', '.join(found)}")
    raise ValueError(f"save_checkpoint needs, {'; '.join(obstacles.values())}.")


def _obstacles(model, architecture):
    """What of a model's arguments has no place in a family's config, in words."""
    family, body = FAMILIES[architecture.model_type], body_of(architecture, model)
    unnamed = [
        f"{argument} in {tuple(dict.fromkeys(names.values()))} (got {getattr(body, argument)!r})"
        for _, argument, _, names in family.arguments
        if names is not None and getattr(body, argument) not in names.values()
    ]
    settled = {} if unnamed else _settled(family, _keys(family, body))
    return unnamed + [
        f"{argument}={value!r} (got {getattr(body, argument)!r})"
        for argument, value in settled.items()
        if getattr(body, argument) != value
    ]


def _keys(family, body):
    """A model's arguments as keys of a config."""

    def theirs(value, names):
        return value if names is None else next(one for one, ours in names.items() if ours == value)

    return {key: theirs(getattr(body, argument), names) for key, argument, _, names in family.arguments}


def config_of(model, name, architecture):
    """The dict of a model's config.json."""
    family, body = FAMILIES[architecture.model_type], body_of(architecture, model)
    head = {"architectures": [name], "model_type": architecture.model_type, "dtype": "float32"}
    return {**head, **family.defaults, **_keys(family, body), **architecture.extra(model)}


def with_label_ids(config):
    """A config's keys with label2id, where they have id2label alone: transformers would show another's."""
    if not config.get("id2label"):
        return config
    return {"label2id": {name: int(i) for i, name in config["id2label"].items()}, **config}
