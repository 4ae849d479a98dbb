"""Attributes of the cartoon faces."""

__all__ = ["ATTRIBUTES", "SHARES"]

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "skin": ("light", "tan", "dark"),
    "hair": ("bald", "short", "curly", "long"),
    "hair_color": ("black", "brown", "blond", "red", "grey"),
    "facial_hair": ("none", "moustache", "goatee", "beard"),
    "glasses": ("no", "yes"),
    "headwear": ("none", "cap", "santa", "headband"),
    "smile": ("no", "yes"),
}
"""Values of each attribute, in the order of the network's heads."""

SHARES: dict[str, tuple[float, ...]] = {
    "facial_hair": (0.45, 0.15, 0.15, 0.25),
    "hair": (0.12, 0.42, 0.16, 0.3),  # a cap or a santa hat, a fifth of all, turns curly hair into short
    "glasses": (0.7, 0.3),
    "smile": (0.5, 0.5),
}
"""Shares of attribute values among generated faces, from WORLD in data/faces/generator/generate.mjs."""
