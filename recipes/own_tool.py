"""What own_tool.yaml names. A tool has type hints and a docstring; a reward gives one number a rollout."""

PAGES = {"Ngong Hills": "A ridge in Kenya.", "Kenya": "Capital: Nairobi.", "Lake Titicaca": "A lake in Peru."}


def lookup(title: str) -> str:
    """Read an encyclopedia page.

    Args:
        title: Title of the page.
    """
    return PAGES.get(title, "No such page.")


def brevity(completions, **kwargs) -> list[float]:
    """From 1 for an empty last message down to 0 for one of 200 characters and more."""
    return [max(0.0, 1 - len(messages[-1].get("content") or "") / 200) for messages in completions]
